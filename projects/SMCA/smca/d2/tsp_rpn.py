"""TSP-RCNN's pyramid and proposals for Detectron2 (Sun et al., arXiv 2011.10881).

Detectron2's own FPN and RPN do the work; here are the levels and the head that they lack.
Shapes: B images, C channels of the pyramid, A anchors a place.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, RPN_HEAD_REGISTRY, build_resnet_backbone
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from torch import Tensor, nn

from ..modeling.fpn import TopLevels


class _TopBlock(TopLevels):
    """The levels p6 and p7 as Detectron2's FPN asks for them."""

    num_levels = 2
    in_feature = "p5"


@BACKBONE_REGISTRY.register()
def build_tsp_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's ResNet and FPN with p6 and p7, which have a batch norm, above p5.

    MODEL.FPN.IN_FEATURES has to end with "res5".
    """
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=_TopBlock(cfg.MODEL.FPN.OUT_CHANNELS),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


class _Tower(nn.Module):
    """3x3 convolutions that the levels share, each with a norm of the level's own and a ReLU."""

    def __init__(self, widths: Sequence[int], num_levels: int):
        """
        Args:
            widths: channels of the input, and of each convolution's output.
            num_levels: how many maps there are.
        """
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.SyncBatchNorm(width) for width in widths[1:])
            for _ in range(num_levels)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        for conv, norm in zip(self.convs, self.norms[level], strict=True):
            x = F.relu(norm(conv(x)), inplace=True)
        return x


@RPN_HEAD_REGISTRY.register()
class TSPRPNHead(nn.Module):
    """An RPN head whose objectness and boxes come from convolutions of their own."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        num_levels: int,
        box_dim: int = 4,
        conv_dims: Sequence[int] = (-1, -1),
    ):
        """
        Args:
            in_channels: C, the same in all levels.
            num_anchors: A.
            num_levels: how many maps there are.
            box_dim: numbers of a box.
            conv_dims: channels of each 3x3 convolution of both branches; -1: as many as its input
                has.
        """
        super().__init__()
        widths = [in_channels]
        for dim in conv_dims:
            widths.append(widths[-1] if dim == -1 else dim)
        self.objectness_tower = _Tower(widths, num_levels)
        self.anchor_tower = _Tower(widths, num_levels)
        self.objectness_logits = nn.Conv2d(widths[-1], num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(widths[-1], num_anchors * box_dim, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict:
        theirs = StandardRPNHead.from_config(cfg, input_shape)
        return {**theirs, "num_levels": len(input_shape)}

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits (B, A, h, w) and deltas (B, 4A, h, w) of each map (B, C, h, w)."""
        logits, deltas = [], []
        for level, x in enumerate(features):
            logits.append(self.objectness_logits(self.objectness_tower(x, level)))
            deltas.append(self.anchor_deltas(self.anchor_tower(x, level)))
        return logits, deltas
