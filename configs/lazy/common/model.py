"""SMCA with ResNet-50 and three scales, as ``configs/smca_R50_50ep.yaml`` has it."""

from detectron2.config import LazyCall as L

from smca.d2 import SMCA, SMCAResNet
from smca.modeling.encoder import IntraMultiEncoder
from smca.modeling.heads import DetectionHeads
from smca.modeling.neck import Neck
from smca.modeling.smca_decoder import SMCADecoder
from smca.training import HungarianMatcher, SetCriterion

# The parts stand in the order in which the YAML models are built: a seed gives both the same start.
# Arguments that are not named here have their constructors' defaults, and may be set too.
model = L(SMCA)(
    backbone=L(SMCAResNet)(
        depth=50,
        out_features=["res4", "res5"],
        norm="FrozenBN",
        freeze_at=2,
    ),
    encoder=L(IntraMultiEncoder)(
        blocks=["intra", "intra", "multi", "intra", "intra"],
        num_scales="${..neck.num_scales}",
        dim="${..neck.dim}",
        num_heads="${..decoder.num_heads}",
        ffn_dim="${..decoder.ffn_dim}",
        dropout="${..decoder.dropout}",
        attention_dropout="${..decoder.attention_dropout}",
    ),
    decoder=L(SMCADecoder)(
        num_layers=6,
        num_queries=300,
        num_scales="${..neck.num_scales}",
        dim="${..neck.dim}",
        num_heads=8,
        ffn_dim=1024,
        dropout=0.1,
        attention_dropout=0.1,
    ),
    neck=L(Neck)(
        in_features="${..backbone.out_features}",
        in_channels=[1024, 2048],
        in_strides=[16, 32],
        num_scales=3,
        dim=256,
    ),
    # One logit a class; 0: as many as the data has classes.
    heads=L(DetectionHeads)(dim="${..neck.dim}", num_logits=80),
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(
            class_cost=2.0, l1_cost=5.0, giou_cost=2.0, alpha="${..alpha}", gamma="${..gamma}"
        ),
        class_weight=2.0,
        l1_weight=5.0,
        giou_weight=2.0,
        alpha=0.25,
        gamma=2.0,
    ),
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    max_detections=300,
)
