"""ResNet with Detectron2's names, torchvision's layout, and padding that leaves no trace.

Checkpoints use these names on disk (``res2.0.conv1.norm.weight``), in both hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ..errors import ConfigError
from ..structures import Size
from .memory import valid_mask

# Devices whose convolutions are faster in this format (docs/PERFORMANCE.md), which they keep.
CHANNELS_LAST = ("cpu", "cuda")


class GroupNorm(nn.GroupNorm):
    """Group norm whose statistics leave padding out."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (B, C, h, w).
            valid: (B, 1, h, w), which cells are not padding; None: all.
        """
        if valid is None:
            # Less torch's check: a single number is normed to zero, as it is beside padding.
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        # As torch's under autocast, in float32: squares and sums of float16 overflow.
        dtype = torch.promote_types(x.dtype, torch.float32)
        groups = x.to(dtype).unflatten(1, (self.num_groups, -1))  # (B, G, C / G, h, w)
        valid = valid[:, None].to(dtype)
        count = valid.sum((-2, -1), keepdim=True) * groups.shape[2]
        mean = (groups * valid).sum((2, 3, 4), keepdim=True) / count
        centered = groups - mean
        variance = (centered.square() * valid).sum((2, 3, 4), keepdim=True) / count
        normed = (centered * (variance + self.eps).rsqrt()).flatten(1, 2)
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's, with its numbers as one scale and one shift."""

    _affine: tuple[list[tuple[Tensor, int]], tuple[Tensor, Tensor]] | None = None

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,), kept until the numbers they are made of change.

        Making them takes five operations a norm, which a GPU with few images would wait for.
        """
        numbers = (self.weight, self.bias, self.running_mean, self.running_var)
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or self.weight.is_inference():
            return self._made(*numbers)
        seen = [(number, number._version) for number in numbers]
        if self._affine is None or any(
            old is not new or before != now
            for (old, before), (new, now) in zip(self._affine[0], seen, strict=True)
        ):
            with torch.inference_mode(False):  # or training could not use them
                self._affine = seen, self._made(*numbers)
        return self._affine[1]

    def _made(
        self, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale = weight * (variance + self.eps).rsqrt()
        return scale, bias - mean * scale


# Depth: (bottlenecks?, blocks a stage).
DEPTHS = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}


def group_norm(channels: int) -> GroupNorm:
    """Detectron2's 32 groups; narrow layers have groups of 4 channels, or as near as divides."""
    most = 32 if channels >= 64 else max(1, channels // 4)
    groups = max(count for count in range(1, most + 1) if channels % count == 0)
    return GroupNorm(groups, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "FrozenBN": FrozenBatchNorm,
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": group_norm,
    "": lambda channels: nn.Identity(),
}


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
        """``valid`` (B, 1, h, w): which cells of the output are not padding; None: all."""
        if isinstance(self.norm, FrozenBatchNorm):
            # Scaling the weights is cheaper than scaling the map, and the same.
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
    """``x`` (B, C, h, w) with zeros wherever ``valid`` (B, 1, h, w) does not hold.

    Before a 3x3 convolution this makes padding act like the convolution's own.
    """
    return x if valid is None else x * valid


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str, **_: int):
        super().__init__()
        self.stride = stride
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm)

    def forward(self, x: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        out = F.relu_(self.conv1(zero_padding(x, valid_in), valid_out))
        out = self.conv2(zero_padding(out, valid_out), valid_out)
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x, valid_out)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions (ResNet-50 and deeper)."""

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
    ):
        super().__init__()
        self.stride = stride
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)
        self.conv1 = ConvNorm(in_channels, width, 1, norm=norm)
        self.conv2 = ConvNorm(
            width, width, 3, stride=stride, groups=groups, dilation=dilation, norm=norm
        )
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm)

    def forward(self, x: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        out = F.relu_(self.conv1(x, valid_in))
        out = F.relu_(self.conv2(zero_padding(out, valid_in), valid_out))
        out = self.conv3(out, valid_out)
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x, valid_out)))


class BasicStem(nn.Module):
    """7x7 convolution and 3x3 max-pooling, stride 4 together: the one with pretrained weights."""

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
    """Two 3x3 convolutions of stride 2, which learn faster from scratch."""

    def __init__(self, out_channels: int, *, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(3, out_channels, 3, stride=2, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride=2, norm=norm)

    def forward(self, images: Tensor, valid_in: Tensor | None, valid_out: Tensor | None) -> Tensor:
        x = zero_padding(F.relu_(self.conv1(images, valid_in)), valid_in)
        return F.relu_(self.conv2(x, valid_out))


STEMS = {"basic": BasicStem, "conv": ConvStem}


class ResNet(nn.Module):
    """A ResNet that returns named maps (paper, section 4.1).

    Attributes:
        strides: pixels a cell of each map it returns, by name.
        channels: channels of each map it returns, by name.
        accepts_sizes: :meth:`forward` takes the images' sizes, and a padded image then has exactly
            the maps it would have alone.
    """

    accepts_sizes = True

    def __init__(
        self,
        *,
        depth: int,
        out_features: Sequence[str],
        norm: str = "FrozenBN",
        freeze_at: int = 2,
        res5_dilation: int = 1,
        stem: str = "basic",
        stem_channels: int = 64,
        res2_channels: int = 256,
        groups: int = 1,
        width_per_group: int = 64,
    ):
        """
        Args:
            depth: a key of ``DEPTHS``.
            out_features: names of the maps to return, of res2 to res5.
            norm: a key of ``NORMS``.
            freeze_at: stages that are not trained: 0 none, 1 the stem, 2 the stem and res2, ...
            res5_dilation: 2 keeps res5 at stride 16; its first block then stays undilated, as in
                torchvision.
            stem: a key of ``STEMS``.
            stem_channels, res2_channels: output channels of the stem and res2; each later stage
                has twice those of the one before.
            groups, width_per_group: of the bottlenecks' 3x3 convolutions in res2.
        """
        super().__init__()
        # With channels last, oneDNN's strided 1x1 convolutions of fewer than 16 channels write
        # beyond their memory (uxlfoundation/oneDNN issue 6035).
        self.narrow = min(stem_channels, res2_channels) < 16
        bottleneck, blocks = DEPTHS[depth]
        self.stem = STEMS[stem](stem_channels, norm=norm)
        self.strides: dict[str, int] = {}
        self.channels: dict[str, int] = {}
        in_channels, out_channels, total_stride = stem_channels, res2_channels, 4
        width = groups * width_per_group
        for number, num_blocks in enumerate(blocks, start=2):
            dilated = number == 5 and res5_dilation > 1
            stride = 1 if number == 2 or dilated else 2
            total_stride *= stride
            stage = nn.ModuleList()
            for block in range(num_blocks):
                stage.append(
                    (Bottleneck if bottleneck else BasicBlock)(
                        in_channels,
                        out_channels,
                        stride=stride if block == 0 else 1,
                        norm=norm,
                        width=width,
                        groups=groups,
                        dilation=res5_dilation if dilated and block > 0 else 1,
                    )
                )
                in_channels = out_channels
            name = f"res{number}"
            self.add_module(name, stage)
            if name in out_features:
                self.strides[name], self.channels[name] = total_stride, out_channels
            out_channels, width = out_channels * 2, width * 2
            if len(self.strides) == len(out_features):
                break
        self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg) -> dict:
        resnets = cfg.MODEL.RESNETS
        allowed_values: dict[str, Collection] = {
            "DEPTH": DEPTHS,
            "NORM": NORMS,
            "STEM_TYPE": STEMS,
            "STRIDE_IN_1X1": (False,),
        }
        for key, allowed in allowed_values.items():
            if resnets[key] not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise ConfigError(
                    f"MODEL.RESNETS.{key} is {resnets[key]!r}; it must be one of {choices}"
                )
        features = cfg.MODEL.SMCA.IN_FEATURES
        stages = ("res2", "res3", "res4", "res5")
        if not set(features) <= set(stages):
            raise ConfigError(f"MODEL.SMCA.IN_FEATURES is {features}; a ResNet has {stages}")
        bottleneck = DEPTHS[resnets.DEPTH][0]
        if not bottleneck and resnets.RES5_DILATION != 1:
            raise ConfigError(
                f"MODEL.RESNETS.RES5_DILATION is {resnets.RES5_DILATION}; it must be 1 "
                f"at MODEL.RESNETS.DEPTH {resnets.DEPTH}"
            )
        return {
            "depth": resnets.DEPTH,
            "out_features": features,
            "norm": resnets.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "res5_dilation": resnets.RES5_DILATION,
            "stem": resnets.STEM_TYPE,
            "stem_channels": resnets.STEM_OUT_CHANNELS,
            "res2_channels": resnets.RES2_OUT_CHANNELS,
            "groups": resnets.NUM_GROUPS,
            "width_per_group": resnets.WIDTH_PER_GROUP,
        }

    def _freeze(self, freeze_at: int) -> None:
        for stage in list(self.children())[:freeze_at]:
            for parameter in stage.parameters():
                parameter.requires_grad = False
            for conv in stage.modules():
                if isinstance(conv, ConvNorm) and isinstance(conv.norm, nn.BatchNorm2d):
                    conv.norm = FrozenBatchNorm(conv.out_channels)

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> dict[str, Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised, padded with zeros at the right and the bottom.
            sizes: (h, w) of each image without its padding; None: no image is padded.

        Returns:
            maps (B, channels, ceil(H / stride), ceil(W / stride)) by name.
        """

        def valid(shape: Size, stride: int) -> Tensor | None:
            if sizes is None:
                return None
            mask = valid_mask(sizes, stride, shape, images.device)
            return None if mask is None else mask[:, None]

        if images.device.type in CHANNELS_LAST and not self.narrow:
            images = images.contiguous(memory_format=torch.channels_last)
        half = _halved(images.shape[-2:])
        stride, shape = 4, _halved(half)
        valid_in = valid(shape, stride)
        x = self.stem(images, valid(half, 2), valid_in)
        maps = {}
        for name, stage in list(self.named_children())[1:]:
            for block in stage.children():
                valid_out = valid_in
                if block.stride == 2:
                    stride, shape = stride * 2, _halved(shape)
                    valid_out = valid(shape, stride)
                x = block(x, valid_in, valid_out)
                valid_in = valid_out
            if name in self.strides:
                maps[name] = x
        return maps


def _halved(shape: Sequence[int]) -> Size:
    return (shape[0] + 1) // 2, (shape[1] + 1) // 2
