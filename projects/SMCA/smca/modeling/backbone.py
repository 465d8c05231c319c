"""ResNet with Detectron2's names, torchvision's layout, and padding that leaves no trace.

Checkpoints use these names on disk (``res2.0.conv1.norm.weight``), in both hosts.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import Size
from .memory import valid_mask
from .norms import NORMS, FrozenBatchNorm
from .parts import Backbone
from .registry import SMCA_BACKBONE_REGISTRY
from .resnet_blocks import BasicBlock, BasicStem, Bottleneck, ConvNorm, ConvStem

# Devices whose convolutions are faster in this format (docs/PERFORMANCE.md), which they keep.
CHANNELS_LAST = ("cpu", "cuda")
# Depth: (bottlenecks?, blocks a stage).
DEPTHS = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
STEMS = {"basic": BasicStem, "conv": ConvStem}


@SMCA_BACKBONE_REGISTRY.register()
class ResNet(Backbone):
    """A ResNet that returns named maps (paper, section 4.1).

    With the images' sizes it gives a padded image exactly the maps it would have alone.
    """

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
        stride_in_1x1: bool = False,
    ):
        """
        Args:
            depth: a key of ``DEPTHS``.
            out_features: names of the maps to return, from res2 to res5.
            norm: a key of :data:`~smca.modeling.norms.NORMS`.
            freeze_at: stages that are not trained: 0 none, 1 the stem, 2 the stem and res2, ...
            res5_dilation: 2 keeps res5 at stride 16; its first block then stays undilated, as in
                torchvision.
            stem: a key of ``STEMS``.
            stem_channels, res2_channels: output channels of the stem and res2; each later stage
                has twice those of the one before.
            groups, width_per_group: groups of the bottlenecks' 3x3 convolutions, and channels a
                group in res2.
            stride_in_1x1: bottlenecks stride in their first 1x1 convolution (MSRA's weights), else
                in the 3x3 (torchvision's).
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
                        stride_in_1x1=stride_in_1x1,
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
        }
        for key, allowed in allowed_values.items():
            if resnets[key] not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise ConfigError(
                    f"MODEL.RESNETS.{key} is {resnets[key]!r}; it must be one of {choices}"
                )
        if any(resnets.DEFORM_ON_PER_STAGE):
            raise ConfigError(
                f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {resnets.DEFORM_ON_PER_STAGE!r}; only "
                "Detectron2's own ResNet has deformable convolutions: --engine detectron2 "
                "MODEL.BACKBONE.NAME build_resnet_backbone"
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
            "stride_in_1x1": resnets.STRIDE_IN_1X1,
        }

    def _freeze(self, freeze_at: int) -> None:
        for stage in list(self.children())[:freeze_at]:
            for parameter in stage.parameters():
                parameter.requires_grad = False
            for conv in stage.modules():
                if isinstance(conv, ConvNorm) and isinstance(conv.norm, nn.BatchNorm2d):
                    conv.norm = FrozenBatchNorm(conv.out_channels)

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> dict[str, Tensor]:
        """See :meth:`~smca.modeling.parts.Backbone.forward`."""

        def valid(shape: Size, stride: int) -> Tensor | None:
            if sizes is None:
                return None
            return valid_mask(sizes, stride, shape, images.device)

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
