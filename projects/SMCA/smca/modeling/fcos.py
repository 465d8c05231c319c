"""The places of feature maps, and what FCOS (arXiv 1904.01355) learns at them.

Shapes: B images, S levels, L places of all levels (fine to coarse, rows first), M objects of the
fullest image, C channels, K classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import Size
from .layers import full_precision, logit
from .norms import GroupNorm

# An object is learned at places that are at most so many strides from its centre.
_RADIUS = 1.5
# The greatest distances to a box's sides, in pixels, that a level learns, for strides 8, 16, ...
_RANGES = (-1, 64, 128, 256, 512, math.inf)


@dataclass(frozen=True)
class Grid:
    """The places of all levels.

    Attributes:
        shapes: (rows, columns) of each level.
        strides: pixels a cell, of each level.
        levels: (L,), the level of each place.
        cells: (L, 2), row and column of each place, from 1.
        points: (L, 2), x and y of each place in pixels.
    """

    shapes: tuple[Size, ...]
    strides: tuple[int, ...]
    levels: Tensor
    cells: Tensor
    points: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor], strides: Sequence[int]) -> "Grid":
        """Return the grid of ``maps`` (B, C, h, w)."""
        levels, cells, points = [], [], []
        for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
            rows, columns = features.shape[-2:]
            y = torch.arange(rows, device=features.device).repeat_interleave(columns)
            x = torch.arange(columns, device=features.device).repeat(rows)
            levels.append(torch.full_like(x, level))
            cells.append(torch.stack((y, x), dim=1) + 1)
            points.append(torch.stack((x, y), dim=1) * stride + stride // 2)
        return cls(
            shapes=tuple((x.shape[-2], x.shape[-1]) for x in maps),
            strides=tuple(strides),
            levels=torch.cat(levels),
            cells=torch.cat(cells),
            points=torch.cat(points).float(),
        )

    def covered(self, size: Size) -> list[Size]:
        """Return the rows and columns of each level that an image of ``size`` (h, w) covers.

        As in the published code a level's mask is sampled from that of the level before.
        """
        valid = [(side - 1) // self.strides[0] + 1 for side in size]
        counts: list[Size] = []
        for level, shape in enumerate(self.shapes):
            if level:
                ratios = zip(valid, shape, self.shapes[level - 1], strict=True)
                valid = [(cells * new - 1) // old + 1 for cells, new, old in ratios]
            counts.append((valid[0], valid[1]))
        return counts

    def assign(self, boxes: Tensor) -> Tensor:
        """Return the object (B, L) that each place learns, -1 where it learns none.

        It is the smallest of those whose centre is near, and whose size the level has.

        Args:
            boxes: (B, M, 4) xyxy in pixels; those without area are nobody's.
        """
        width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
        center = (boxes[..., :2] + boxes[..., 2:]) / 2
        area = (width * height)[:, None]  # (B, 1, M)
        found = []
        lengths = [rows * columns for rows, columns in self.shapes]
        for level, points in enumerate(self.points.split(lengths)):
            reach = self.strides[level] * _RADIUS
            near = torch.cat(
                (
                    torch.maximum(center - reach, boxes[..., :2]),
                    torch.minimum(center + reach, boxes[..., 2:]),
                ),
                dim=-1,
            )
            inside = _over_sides(torch.minimum, points, near) > 0  # and so inside the box
            far = _over_sides(torch.maximum, points, boxes)
            fits = inside & (far >= _RANGES[level]) & (far <= _RANGES[level + 1])
            if not boxes.shape[1]:
                found.append(fits.new_full(fits.shape[:2], -1, dtype=torch.int64))
                continue
            least, index = torch.where(fits, area, torch.inf).min(dim=-1)
            found.append(torch.where(least.isfinite(), index, -1))
        return torch.cat(found, dim=1)


def distances_to_sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Return how far (..., 4) left, top, right and bottom of boxes are from points (..., 2)."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def _over_sides(pick: Callable[[Tensor, Tensor], Tensor], points: Tensor, boxes: Tensor) -> Tensor:
    """Return the least or greatest distance (B, L, M) of points (L, 2) to boxes (B, M, 4).

    Side by side it takes a quarter of the memory of all distances.
    """
    x, y = points[:, None].unbind(-1)  # (L, 1)
    left, top, right, bottom = boxes[:, None].unbind(-1)  # (B, 1, M)
    return pick(pick(x - left, right - x), pick(y - top, bottom - y))


class Tower(nn.Module):
    """Convolutions with group norms, the same for all levels."""

    def __init__(self, dim: int, num_layers: int = 4):
        super().__init__()
        self.convs = nn.ModuleList(_conv(dim, dim) for _ in range(num_layers))
        self.norms = nn.ModuleList(GroupNorm(dim) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x


class Towers(nn.Module):
    """A tower for classes and one for boxes, and a classifier of places."""

    def __init__(self, *, dim: int, num_classes: int):
        super().__init__()
        self.class_tower = Tower(dim)
        self.box_tower = Tower(dim)
        self.class_head = _conv(dim, num_classes)
        nn.init.constant_(self.class_head.bias, logit(0.01))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features (B, L, 2 C), those for classes first, and logits (B, L, K) of places."""
        features, logits = [], []
        for x in maps:
            of_class, of_box = self.class_tower(x), self.box_tower(x)
            # As in the detection heads: half precision is coarse near the usual logit.
            with full_precision(x.device):
                found = self.class_head(of_class.to(self.class_head.weight.dtype))
            features.append(torch.cat((of_class, of_box), dim=1).flatten(2))
            logits.append(found.flatten(2))
        return torch.cat(features, 2).transpose(1, 2), torch.cat(logits, 2).transpose(1, 2)


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
