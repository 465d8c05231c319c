"""ViTDet's simple feature pyramid: maps of several strides from a plain ViT's last one.

Li, Mao, Girshick, He: Exploring Plain Vision Transformer Backbones for Object Detection (2022),
section 3.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimplePyramid(nn.ModuleDict):
    """Convolves one map to several, by name."""

    def __init__(self, *, in_channels: int, in_stride: int, dim: int, strides: Mapping[str, int]):
        """
        Args:
            in_channels, in_stride: channels of the ViT's map, and the side of its patches.
            dim: channels of the maps it returns.
            strides: strides of these by name, each ``in_stride`` times a power of two.
        """
        super().__init__()
        for name, stride in strides.items():
            layers: list[nn.Module] = []
            channels = in_channels
            for step in range(round(math.log2(in_stride / stride))):
                if step > 0:
                    layers += [LayerNorm2d(channels), nn.GELU()]
                layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
                channels //= 2
            for _ in range(round(math.log2(stride / in_stride))):
                layers.append(nn.MaxPool2d(2))
            self[name] = nn.Sequential(
                *layers,
                nn.Conv2d(channels, dim, 1, bias=False),
                LayerNorm2d(dim),
                nn.Conv2d(dim, dim, 3, padding=1, bias=False),
                LayerNorm2d(dim),
            )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of a ViT's map (B, in_channels, h, w)."""
        return {name: branch(x) for name, branch in self.items()}


def pyramid_strides(in_stride: int) -> dict[str, int]:
    """Return the strides that a pyramid can have by name: res4 is 16, or 14 for patches of 14."""
    level = round(math.log2(in_stride))
    strides = {f"res{n}": in_stride * 2.0 ** (n - level) for n in range(2, 6)}
    return {name: int(stride) for name, stride in strides.items() if stride.is_integer()}
