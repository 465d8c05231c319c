"""The project's ResNet as a Detectron2 backbone."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from ..modeling.backbone import ResNet


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
