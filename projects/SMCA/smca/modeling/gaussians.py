"""The Gaussians that modulate the co-attention (Eqs. 3-6), as biases of a few channels.

Shapes: B images, N queries, S scales, G Gaussians a query and scale (one a head, or 1), L keys of a
scale, E factors or channels.

log G is a quadratic form in the key's position. It is therefore an inner product of a few factors
of the query with x^2, y^2, xy, x, y and 1 of the key. Positions are counted from the middle of the
map, which keeps the numbers small. The 1 changes no attention weight, but its gradient cancels
the rounding errors in the gradients of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import Size
from .attention import PADDING, LogitBias, padding_biases
from .memory import numbers_on

# The largest factor of a query. Float16 ends at 65504.
_LARGEST = 2.0**14
# Stands for the key's 1, so that the query's factor is no larger than the others.
_ONE = 2.0**8
# So many numbers of a half precision sum up to a float32 of 24 bits: they have 11 and 8 each.
PARTS = {torch.float16: 2, torch.bfloat16: 3}


@dataclass(frozen=True)
class Grid:
    """The keys' factors of log G, which all layers share.

    Attributes:
        shapes: (rows, columns) of each scale's map.
        keys: (B or 1, 1, L, E) of each scale, in the type that attention computes in. Where there
            is padding, the last channel is padding's.
        middle: (S, 2), the cell x, y that positions are counted from.
        oriented: there is a factor of xy.
        padded: there is padding.
    """

    shapes: Sequence[Size]
    keys: list[Tensor]
    middle: Tensor
    oriented: bool
    padded: bool

    @classmethod
    def of(
        cls,
        shapes: Sequence[Size],
        *,
        oriented: bool,
        dtype: torch.dtype,
        like: Tensor,
        padding: Sequence[Tensor | None] | None = None,
    ) -> Grid:
        """
        Args:
            shapes, oriented: see the class.
            dtype: the type that attention computes in.
            like: a tensor on the device and of the type of the Gaussians.
            padding: (B, L) of each scale, True where a key is padding.
        """
        keys = []
        for scale, (rows, columns) in enumerate(shapes):
            x = torch.arange(columns, device=like.device) - columns // 2
            y = torch.arange(rows, device=like.device) - rows // 2
            y, x = torch.meshgrid(y, x, indexing="ij")
            squares = [-x * x, -y * y, -2 * x * y] if oriented else [-x * x, -y * y]
            factors = torch.stack((*squares, 2 * x, 2 * y, torch.full_like(x, -_ONE)), dim=-1)
            key = _key_channels(factors.flatten(0, 1).to(like), len(squares), dtype)[None, None]
            if padding is not None:
                (bias,) = padding_biases(padding[scale])
                extra = bias.key.to(dtype)
                key = torch.cat((key.expand(len(extra), -1, -1, -1), extra), dim=-1)
            keys.append(key)
        middle = [(columns // 2, rows // 2) for rows, columns in shapes]
        return cls(
            shapes=shapes,
            keys=keys,
            middle=numbers_on(like.device, middle, like.dtype),
            oriented=oriented,
            padded=padding is not None,
        )


def _key_channels(factors: Tensor, num_squares: int, dtype: torch.dtype) -> Tensor:
    """Turn factors (L, E) of keys into channels of ``dtype``, for :func:`_query_channels`.

    In a half precision each factor of a query and of a key is split into numbers, and each pair of
    these gets a channel. The products, which kernels sum in float32, then add up to the exact ones.
    Squares have more bits than a half precision, coordinates do not.
    """
    if dtype not in PARTS:
        return factors.to(dtype)
    first, second = _split(factors, 2, dtype)
    return torch.cat([first] * PARTS[dtype] + [second[..., :num_squares]] * PARTS[dtype], dim=-1)


def _query_channels(factors: Tensor, num_squares: int, dtype: torch.dtype) -> Tensor:
    """Turn factors (..., E) of queries into channels of ``dtype``."""
    if dtype not in PARTS:
        return factors.to(dtype)
    parts = _split(factors, PARTS[dtype], dtype)
    # Slices: an index that is a list would be copied to the device, which waits.
    return torch.cat([*parts, *(part[..., :num_squares] for part in parts)], dim=-1)


def _split(x: Tensor, count: int, dtype: torch.dtype) -> list[Tensor]:
    """Split ``x`` into ``count`` tensors of ``dtype`` that sum up to it.

    Only the first passes on a gradient: all of them would pass the same one, that of the sum.
    """
    parts = [x.to(dtype)]
    rest = x.detach()
    for _ in range(count - 1):
        rest = rest - parts[-1].detach().to(rest.dtype)
        parts.append(rest.to(dtype))
    return parts


@dataclass(frozen=True)
class Gaussians:
    """One Gaussian a query, head and scale.

    Attributes:
        center: (B, N, S, G, 2), x before y, in cells of the scale's map; the first cell is at 0.
        precision: (B, N, S, G, 3): xx, yy and xy of the symmetric matrix P.
        rate: (S,) such that log G = -rate * (p - center)^T P (p - center).
    """

    center: Tensor
    precision: Tensor
    rate: Tensor

    def biases(self, grid: Grid) -> list[LogitBias]:
        """log G of each scale, together with the bias that leaves its padding out."""
        place = self.center - grid.middle[:, None]
        squares, cross = (self.precision * self.rate[:, None, None]).split((2, 1), dim=-1)
        moments = squares * place
        if grid.oriented:
            moments = moments + cross * place.flip(-1)
            squares = torch.cat((squares, cross), dim=-1)
        constant = (moments * place).sum(-1, keepdim=True) / _ONE
        query = torch.cat((squares, moments, constant), dim=-1)
        # A Gaussian far narrower than a cell is made wider, about its centre, but stays narrower.
        # Half precisions then hold these numbers, and padding's bias outweighs them.
        largest = query.detach().abs().amax(dim=-1, keepdim=True)
        query = query / (largest / _LARGEST).clamp(min=1)
        dtype = grid.keys[0].dtype
        query = _query_channels(query, 3 if grid.oriented else 2, dtype)
        if grid.padded:
            query = F.pad(query, (0, 1), value=PADDING)
        query = query.permute(2, 0, 3, 1, 4)  # (S, B, G, N, E)
        return [LogitBias(query=q, key=k) for q, k in zip(query.unbind(), grid.keys, strict=True)]

    def log_density(self, scale: int, points: Tensor) -> Tensor:
        """log G, unnormalised and at most 0, at ``points`` (L, 2) in cells: (B, G, N, L)."""
        dx, dy = (points - self.center[:, :, scale, :, None]).unbind(-1)  # (B, N, G, L)
        xx, yy, xy = (self.precision[:, :, scale, :, None] * self.rate[scale]).unbind(-1)
        return -(xx * dx**2 + yy * dy**2 + 2 * xy * dx * dy).transpose(1, 2)
