"""DETR's two-dimensional sine position encoding, counted over the valid cells of each image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..structures import Size
from .memory import numbers_on


def sine_embedding(x: Tensor, channels: int) -> Tensor:
    """Interleave sines and cosines of ``x`` (...) at many wavelengths: (..., channels)."""
    frequency = (torch.arange(channels, device=x.device) // 2).to(x.dtype)
    angles = x[..., None] / 10000.0 ** (2 * frequency / channels)
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_positions(
    cells: Sequence[Size],
    shape: Size,
    channels: int,
    device: torch.device,
    *,
    offset: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Encode the positions of a map's cells, as fractions of each image's size times 2 pi.

    Args:
        cells: (rows, columns) of the map that each image covers.
        shape: (rows, columns) of the map with its padding.
        channels: C; the first half encodes y, the second x.
        device, dtype: of the result.
        offset: where in a cell its position is, from 0 at its far side (DETR) to -1.

    Returns:
        (B, rows * columns, C); (1, ...) when all images have the same valid size.
    """
    if all(cell == cells[0] for cell in cells):
        cells = cells[:1]
    valid = numbers_on(device, cells, dtype)  # (B, 2)
    axes = []
    for axis, length in enumerate(shape):
        counted = torch.arange(1, length + 1, dtype=dtype, device=device)
        angle = (counted + offset) / (valid[:, axis, None] + 1e-6) * (2 * math.pi)  # (B, length)
        axes.append(sine_embedding(angle, channels // 2))
    y, x = axes
    y = y[:, :, None].expand(-1, -1, shape[1], -1)
    x = x[:, None].expand(-1, shape[0], -1, -1)
    return torch.cat((y, x), dim=-1).flatten(1, 2)
