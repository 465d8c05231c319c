"""The image as the transformer sees it: the tokens of all scales, and which of them are padding.

Shapes: B images, S scales, L tokens of all scales (fine to coarse, rows first), C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..structures import Size
from .layers import compute_dtype


def numbers_on(
    device: torch.device, numbers: Sequence, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Make a tensor of a few numbers on ``device`` without waiting for the device.

    Symbols of a graph being captured, such as the sides of images, stay symbols.
    """
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        at_once = torch.device(device).type != "mps"  # which may copy what is gone by then
        return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=at_once)
    if isinstance(numbers, Sequence):
        return torch.stack([numbers_on(device, number, dtype) for number in numbers])
    return torch.full((), numbers, dtype=dtype, device=device)


def valid_cells(size: Size, stride: int) -> Size:
    """Rows and columns of a map that an unpadded image of ``size`` (h, w) pixels has."""
    # Rounded up in the way convolutions count their cells: as symbols, both are then the same.
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def valid_mask(
    sizes: Sequence[Size], stride: int, shape: Sequence[int], device: torch.device
) -> Tensor | None:
    """Mark the cells of a map that belong to the images and not to their padding.

    Cells are counted, not sampled from the image's mask: the result never depends on the padding.

    Args:
        sizes: (h, w) of each image in pixels, without padding.
        stride: pixels a cell.
        shape: (rows, columns) of the map.

    Returns:
        (B, 1, rows, columns) bool, or None when there is no padding at all.
    """
    cells = [valid_cells(size, stride) for size in sizes]
    if all(cell == tuple(shape) for cell in cells):
        return None
    rows, columns = numbers_on(device, cells, torch.int64).T[..., None, None, None]
    inside_rows = torch.arange(shape[0], device=device)[:, None] < rows
    return inside_rows & (torch.arange(shape[1], device=device) < columns)


def valid_map_sizes(
    sizes: Sequence[Size],
    strides: Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Columns and rows (B, S, 2), fractional, that images of ``sizes`` (h, w) cover of each map."""
    return numbers_on(device, [[(w / n, h / n) for n in strides] for h, w in sizes], dtype)


@dataclass(frozen=True)
class Memory:
    """Tokens of all scales and their places.

    Attributes:
        tokens: (B, L, C).
        positions: (B or 1, L, C), added to queries and keys.
        shapes: (rows, columns) of each scale's map.
        strides: pixels a cell, of each scale.
        valid_sizes: (B or 1, S, 2), columns and rows of each scale's map that each image covers,
            fractional.
        padding: (B, L), True where a token is padding; None when none is.
        with_pos: (B, L, C), the tokens with their positions added, where that sum is kept.
    """

    tokens: Tensor
    positions: Tensor
    shapes: tuple[Size, ...]
    strides: tuple[int, ...]
    valid_sizes: Tensor
    padding: Tensor | None
    with_pos: Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each scale, L_s; they sum to L."""
        return [rows * columns for rows, columns in self.shapes]

    @property
    def map_sizes(self) -> Tensor:
        """``valid_sizes`` in whole cells, the last of which may lie partly in the padding."""
        return self.valid_sizes.ceil()

    def with_tokens(self, tokens: Tensor) -> Memory:
        """The same places with other tokens (B, L, C)."""
        return replace(self, tokens=tokens, with_pos=None)

    def keys(self) -> Tensor:
        """The tokens with their positions added (B, L, C)."""
        return self.tokens + self.positions if self.with_pos is None else self.with_pos

    def for_decoder(self) -> Memory:
        """The same for layers that all read it: sums and casts are made once."""
        dtype = compute_dtype(self.tokens)
        return replace(self, tokens=self.tokens.to(dtype), with_pos=self.keys().to(dtype))

    def maps(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (B, L, C) as the map (B, C, rows, columns) of each scale."""
        scales = zip(tokens.split(self.lengths, dim=1), self.shapes, strict=True)
        return [scale.transpose(1, 2).unflatten(-1, shape) for scale, shape in scales]

    def padding_by_scale(self) -> Sequence[Tensor | None]:
        """``padding`` cut into scales: (B, L_s) each."""
        if self.padding is None:
            return [None] * len(self.shapes)
        return self.padding.split(self.lengths, dim=1)
