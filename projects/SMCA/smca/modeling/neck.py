"""From backbone maps to tokens: projections to C channels, coarser scales, positions (3.3).

Shapes: B images, S scales, L tokens of all scales, C channels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..structures import Size
from .memory import Memory, valid_cells, valid_map_sizes, valid_mask
from .norms import NORMS
from .position_encoding import sine_positions
from .resnet_blocks import zero_padding


class Neck(nn.Module):
    """Projects the backbone's maps, and convolves the last one with stride 2 for coarser scales."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_scales: int,
        dim: int,
        norm: str = "",
        position_offset: float = 0.0,
        embeds_one_scale: bool = False,
    ):
        """
        Args:
            in_features: names of the backbone's maps, fine to coarse.
            in_channels, in_strides: their channels and strides.
            num_scales: S. The first scale beyond the backbone's maps is a 3x3 convolution of its
                last map, each later one a convolution of the scale before.
            dim: C.
            norm: "GN" for a group norm after each convolution (Deformable DETR).
            position_offset: see :func:`~smca.modeling.position_encoding.sine_positions`.
            embeds_one_scale: learn the embedding of a scale also if there is only one.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.dim = dim
        self.position_offset = position_offset
        self.strides = list(in_strides)
        self.projections = nn.ModuleList(
            nn.Conv2d(channels, dim, kernel_size=1) for channels in in_channels
        )
        channels = in_channels[-1]
        for _ in range(num_scales - len(in_features)):
            self.projections.append(nn.Conv2d(channels, dim, kernel_size=3, stride=2, padding=1))
            self.strides.append(self.strides[-1] * 2)
            channels = dim
        self.norms = nn.ModuleList(NORMS[norm](dim) for _ in self.projections) if norm else None
        embeds = embeds_one_scale or num_scales > 1
        self.level_embed = nn.Parameter(torch.randn(num_scales, dim)) if embeds else None

    def forward(self, features: Mapping[str, Tensor], sizes: Sequence[Size]) -> Memory:
        """
        Args:
            features: maps (B, channels, h, w) by name.
            sizes: (h, w) of each image in pixels, without padding, or one for all of them.
        """
        tokens, positions, shapes = [], [], []
        masks: list[Tensor | None] = []
        dtype = next(self.parameters()).dtype  # places need float32, whatever autocast says
        for scale, (projection, stride) in enumerate(
            zip(self.projections, self.strides, strict=True)
        ):
            if scale < len(self.in_features):
                source = features[self.in_features[scale]]
                projected = projection(source)
            else:
                projected = source = projection(zero_padding(source, masks[-1]))
            shape = projected.shape[-2], projected.shape[-1]
            mask = valid_mask(sizes, stride, shape, projected.device)
            if self.norms is not None:
                projected = self.norms[scale](projected, mask)
            position = sine_positions(
                [valid_cells(size, stride) for size in sizes],
                shape,
                self.dim,
                projected.device,
                offset=self.position_offset,
                dtype=dtype,
            )
            if self.level_embed is not None:
                position = position + self.level_embed[scale]
            tokens.append(projected.flatten(2).transpose(1, 2))
            positions.append(position)
            shapes.append(shape)
            masks.append(mask)
        batch = max(position.shape[0] for position in positions)
        return Memory(
            tokens=torch.cat(tokens, dim=1),
            positions=torch.cat([position.expand(batch, -1, -1) for position in positions], dim=1),
            shapes=tuple(shapes),
            strides=tuple(self.strides),
            valid_sizes=valid_map_sizes(sizes, self.strides, projected.device, dtype),
            padding=_padding(masks, tokens),
        )


def _padding(masks: list[Tensor | None], tokens: list[Tensor]) -> Tensor | None:
    """(B, L), True at padding; a scale may have none while another has some."""
    if all(mask is None for mask in masks):
        return None
    paddings = [
        torch.zeros_like(token[..., 0], dtype=torch.bool)
        if mask is None
        else ~mask.flatten(1).expand(token.shape[0], -1)
        for mask, token in zip(masks, tokens, strict=True)
    ]
    return torch.cat(paddings, dim=1)
