"""Stems and blocks of the ResNet, in which padding leaves no trace.

Every forward takes masks (B, 1, h, w) of the cells that are not padding: ``valid_in`` of its input
(a stem's: of the map of stride 2) and ``valid_out`` of its output; None where no image is padded.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .norms import NORMS, FrozenBatchNorm, GroupNorm


class ConvNorm(nn.Conv2d):
    """A convolution without bias and its normalisation, ``norm``."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, norm: str, **options: Any
    ):
        padding = options.get("dilation", 1) * (kernel_size // 2)
        super().__init__(
            in_channels, out_channels, kernel_size, padding=padding, bias=False, **options
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = NORMS[norm](out_channels)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """``valid`` (B, 1, h, w) is True where a cell of the output is not padding."""
        if isinstance(self.norm, FrozenBatchNorm):
            # Scaling the weights is cheaper than scaling the map, and equal to it.
            scale, shift = self.norm.affine()
            return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)
        x = super().forward(x)
        if self.norm.training and type(self.norm) is nn.BatchNorm2d and x[:, 0].numel() == 1:
            raise ConfigError(
                "MODEL.RESNETS.NORM is 'BN', which has no statistics of one cell of one image: it "
                "must be 'GN' or 'FrozenBN', or SOLVER.IMS_PER_BATCH or the images larger"
            )
        return self.norm(x, valid) if isinstance(self.norm, GroupNorm) else self.norm(x)


def zero_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """``x`` with zeros in its padding, which then acts like a 3x3 convolution's own."""
    return x if valid is None else x * valid


class Block(nn.Module):
    """The base of residual blocks."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str):
        super().__init__()
        self.stride = stride
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)

    def convolve(self, x: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        """Run the block's convolutions; its input is added afterwards."""
        raise NotImplementedError

    def forward(self, x: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        out = self.convolve(x, valid_in, valid_out)
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x, valid_out)))


class BasicBlock(Block):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str, **_: int):
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm)

    def convolve(self, x: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        out = F.relu_(self.conv1(zero_padding(x, valid_in), valid_out))
        return self.conv2(zero_padding(out, valid_out), valid_out)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions (ResNet-50 and deeper); the 3x3 strides, or the first 1x1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: str,
        width: int,
        groups: int,
        dilation: int,
        stride_in_1x1: bool = False,
    ):
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        self.stride_in_1x1 = stride_in_1x1
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(in_channels, width, 1, stride=first, norm=norm)
        self.conv2 = ConvNorm(
            width, width, 3, stride=second, groups=groups, dilation=dilation, norm=norm
        )
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm)

    def convolve(self, x: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        valid = valid_out if self.stride_in_1x1 else valid_in
        out = F.relu_(self.conv1(x, valid))
        out = F.relu_(self.conv2(zero_padding(out, valid), valid_out))
        return self.conv3(out, valid_out)


class BasicStem(nn.Module):
    """A 7x7 convolution and 3x3 max-pooling, stride 4 together: the stem of pretrained weights."""

    def __init__(self, out_channels: int, *, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(3, out_channels, 7, stride=2, norm=norm)

    def forward(self, images: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        x = zero_padding(F.relu_(self.conv1(images, valid_in)), valid_in)
        if torch.compiler.is_exporting() and torch.__version__ < "2.13":
            # With strides, the exporters of these want to know whether the sides are even.
            return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)[:, :, ::2, ::2]
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2. From scratch they learn faster than the basic stem."""

    def __init__(self, out_channels: int, *, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(3, out_channels, 3, stride=2, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride=2, norm=norm)

    def forward(self, images: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        x = zero_padding(F.relu_(self.conv1(images, valid_in)), valid_in)
        return F.relu_(self.conv2(x, valid_out))
