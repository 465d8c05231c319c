"""Multi-scale deformable attention in plain PyTorch (Deformable DETR, arXiv 2010.04159, Eq. 3).

Shapes: B images, N queries, L tokens of all scales, C channels, H heads, S scales, K points.

Each query of each head reads K places of each scale bilinearly and sums them with weights that it
predicts. Places are counted in cells of a map: the middle of the first cell is (0.5, 0.5), x before
y. ``map_sizes`` (B, S, 2) is :attr:`~smca.modeling.memory.Memory.map_sizes`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import Size
from .layers import full_precision, linear
from .memory import Memory


def sampling_points(reference: Tensor, offsets: Tensor, map_sizes: Tensor) -> Tensor:
    """Find where queries look, in cells: (B, N, H, S, K, 2).

    Around a point, offsets are in cells of each scale. Around a box, an offset of K reaches from
    its middle to its side.

    Args:
        reference: (B, N, 2) points x, y or (B, N, 4) boxes cxcywh, as fractions of each image.
        offsets: (B, N, H, S, K, 2).
        map_sizes: (B, S, 2).
    """
    reference = reference[:, :, None, None, None]
    map_sizes = map_sizes[:, None, None, :, None]
    middle, size = reference[..., :2], reference[..., 2:]
    if reference.shape[-1] == 4:
        offsets = offsets * size * (0.5 / offsets.shape[-2]) * map_sizes
    return middle * map_sizes + offsets


def sample(value: Tensor, shapes: Sequence[Size], points: Tensor, weights: Tensor) -> Tensor:
    """Sum values at points by weights: (B, N, C). Outside the maps values are zero.

    Args:
        value: (B, L, C), the channels of the heads side by side.
        shapes: (rows, columns) of each scale's map.
        points: (B, N, H, S, K, 2), in cells.
        weights: (B, N, H, S, K).
    """
    batch, _, heads = points.shape[:3]
    maps = value.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)  # (B*H, d, L)
    x, y = points.transpose(1, 2).flatten(0, 1).unbind(-1)  # (B*H, N, S, K) each
    weights = weights.transpose(1, 2).flatten(0, 1)
    scales = maps.split([rows * columns for rows, columns in shapes], dim=-1)
    out = maps.new_zeros(())
    for s, (scale, (rows, columns)) in enumerate(zip(scales, shapes, strict=True)):
        # Python numbers, because a tensor of sizes would have to be sent to the device.
        grid = torch.stack((x[:, :, s] * (2 / columns) - 1, y[:, :, s] * (2 / rows) - 1), dim=-1)
        scale = scale.unflatten(-1, (rows, columns))
        sampled = F.grid_sample(scale, grid, padding_mode="zeros", align_corners=False)
        out = out + (sampled * weights[:, None, :, s]).sum(dim=-1)  # (B*H, d, N)
    return out.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Queries choose a few places of each scale around a reference, and how much each counts.

    Time and memory grow with N * S * K, not with N * L.
    """

    def __init__(self, *, dim: int, num_heads: int, num_scales: int, num_points: int = 4):
        super().__init__()
        self.layout = (num_heads, num_scales, num_points)
        places = math.prod(self.layout)
        self.sampling_offsets = nn.Linear(dim, places * 2)
        self.attention_weights = nn.Linear(dim, places)
        self.value_proj = linear(dim, dim)
        self.output_proj = linear(dim, dim)
        for parameter in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(parameter)
        # Each head starts in its own direction, each point one step further, all alike.
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, num_points + 1)[:, None]
        star = (directions[:, None, None] * steps).expand(*self.layout, 2)
        self.sampling_offsets.bias.data.copy_(star.flatten())

    def forward(
        self, query: Tensor, memory: Memory, reference: Tensor, map_sizes: Tensor
    ) -> Tensor:
        """Read the memory for queries (B, N, C), positions added: (B, N, C).

        ``reference`` has points or boxes as :func:`sampling_points` takes them.
        """
        value = self.value_proj(memory.tokens)
        if memory.padding is not None:
            value = value.masked_fill(memory.padding[..., None], 0.0)
        # Places need float32 whatever the rest of the model runs in.
        with full_precision(query.device):
            query = query.to(self.sampling_offsets.weight.dtype)
            offsets = self.sampling_offsets(query).unflatten(-1, (*self.layout, 2))
            logits = self.attention_weights(query).unflatten(-1, self.layout)
            weights = logits.flatten(-2).softmax(dim=-1).view_as(logits)  # over S * K
            points = sampling_points(reference, offsets, map_sizes)
            out = sample(value.to(points.dtype), memory.shapes, points, weights)
        return self.output_proj(out.to(value.dtype))
