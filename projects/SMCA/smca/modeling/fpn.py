"""A feature pyramid with two more levels, as TSP has it (arXiv 2011.10881).

Lin et al.: Feature Pyramid Networks for Object Detection (arXiv 1612.03144).
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from ..distributed import world_size
from ..errors import ConfigError


class StridedConv(nn.Module):
    """A 3x3 convolution of stride 2 with bias, and a batch norm over all workers."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)
        # As torchvision's pyramid starts, by Caffe2's Xavier filler.
        nn.init.kaiming_uniform_(self.conv.weight, a=1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.bn = nn.SyncBatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        synced = world_size() > 1 and isinstance(self.bn, nn.SyncBatchNorm)
        if self.training and x[:, 0].numel() == 1 and not synced:
            raise ConfigError(
                "the pyramid's last map is one cell of one image, of which its batch norm learns "
                "nothing: SOLVER.IMS_PER_BATCH or the images must be larger"
            )
        return self.bn(x)


class TopLevels(nn.Module):
    """The levels p6 and p7 above p5."""

    def __init__(self, dim: int):
        super().__init__()
        self.p6 = StridedConv(dim)
        self.p7 = StridedConv(dim)

    def forward(self, p5: Tensor) -> list[Tensor]:
        p6 = self.p6(p5)
        return [p6, self.p7(F.relu(p6))]


class FPN(nn.Module):
    """torchvision's pyramid, with the two levels above: maps of one width, from fine to coarse.

    Attributes:
        in_features: the backbone's maps that it reads.
        strides: pixels a cell of the maps it returns.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        dim: int,
    ):
        """
        Args:
            in_features: names of backbone maps, from fine to coarse, each of half the size.
            in_channels, in_strides: their channels and strides.
            dim: C.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.strides = (*in_strides, 2 * in_strides[-1], 4 * in_strides[-1])
        self.levels = FeaturePyramidNetwork(list(in_channels), dim)
        self.top = TopLevels(dim)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Return maps (B, C, h, w) of the backbone's maps, of images that the strides divide."""
        maps = list(self.levels({name: features[name] for name in self.in_features}).values())
        return maps + self.top(maps[-1])
