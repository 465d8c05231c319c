"""Backbones in Detectron2's host: this project's and Detectron2's, by name."""

import detectron2.modeling
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from ..modeling import SMCA_BACKBONE_REGISTRY
from ..modeling.backbone import ResNet
from ..modeling.registry import build_from_registry

_RESNET_MAPS = {"stem", "res2", "res3", "res4", "res5"}


def build_backbone(cfg: CfgNode) -> nn.Module:
    """Build MODEL.BACKBONE.NAME of SMCA_BACKBONE_REGISTRY, or else of Detectron2's registry.

    Raises:
        ConfigError: neither has the name.
    """
    name, features = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SMCA.IN_FEATURES
    if name in SMCA_BACKBONE_REGISTRY or name not in BACKBONE_REGISTRY:
        theirs = ", or of Detectron2's " + ", ".join(sorted(dict(BACKBONE_REGISTRY)))
        return build_from_registry(
            SMCA_BACKBONE_REGISTRY, cfg, "MODEL.BACKBONE.NAME", name, others=theirs
        )
    if set(features) <= _RESNET_MAPS:
        # A ResNet then builds and returns only the stages that are read.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RESNETS.OUT_FEATURES = list(features)
    return detectron2.modeling.build_backbone(cfg)


def strides_and_channels(backbone: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Return the strides and channels of a backbone's maps by name, whichever host it is of."""
    if not isinstance(backbone, Backbone):
        return dict(backbone.strides), dict(backbone.channels)
    shapes = backbone.output_shape()
    return (
        {name: shape.stride for name, shape in shapes.items()},
        {name: shape.channels for name, shape in shapes.items()},
    )


class SMCAResNet(ResNet, Backbone):
    """:class:`~smca.modeling.backbone.ResNet` with the interface of Detectron2's backbones.

    Its parameters have the names of Detectron2's own ResNet. It differs from that one where images
    of a batch are padded: here padding never changes a map.
    """

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.channels[name], stride=self.strides[name])
            for name in self.strides
        }


@BACKBONE_REGISTRY.register()
def build_smca_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> SMCAResNet:
    """Build the ResNet of ``cfg``, which returns the maps of MODEL.RESNETS.OUT_FEATURES.

    Raises:
        ConfigError: a value that a ResNet cannot have.
    """
    arguments = ResNet.from_config(cfg)
    arguments["out_features"] = cfg.MODEL.RESNETS.OUT_FEATURES
    return SMCAResNet(**arguments)
