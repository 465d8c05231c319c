"""The Detectron2 host. Importing it registers models, backbones and TSP-RCNN's parts.

Another Detectron2 project uses SMCA with three lines:

    import smca.d2
    smca.d2.add_smca_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SMCA"

and trains it with :class:`Trainer`, or with :func:`build_optimizer` in a DefaultTrainer.
"""

from ..config import add_smca_config, get_cfg
from ..modeling import (
    SMCA_BACKBONE_REGISTRY,
    SMCA_DECODER_REGISTRY,
    SMCA_ENCODER_REGISTRY,
    AnchoredSMCADecoder,
    ConditionalDecoder,
    DeformableDecoder,
    DeformableEncoder,
    DepthwiseEncoder,
    DETRDecoder,
    IntraMultiEncoder,
    Neck,
    SMCADecoder,
    UPDETRDecoder,
)
from .backbone import SMCAResNet, build_smca_resnet_backbone
from .dataset_mapper import DetrDatasetMapper
from .datasets import register_datasets, register_unknown_datasets
from .meta_arch import SMCA, TSPFCOS
from .solver import build_optimizer
from .trainer import Trainer
from .tsp_rcnn import TSPROIHeads
from .tsp_rpn import TSPRPNHead, build_tsp_resnet_fpn_backbone

__all__ = [
    "SMCA",
    "SMCA_BACKBONE_REGISTRY",
    "SMCA_DECODER_REGISTRY",
    "SMCA_ENCODER_REGISTRY",
    "AnchoredSMCADecoder",
    "ConditionalDecoder",
    "DETRDecoder",
    "DeformableDecoder",
    "DeformableEncoder",
    "DepthwiseEncoder",
    "DetrDatasetMapper",
    "IntraMultiEncoder",
    "Neck",
    "SMCADecoder",
    "SMCAResNet",
    "TSPFCOS",
    "TSPROIHeads",
    "TSPRPNHead",
    "Trainer",
    "UPDETRDecoder",
    "add_smca_config",
    "build_optimizer",
    "build_smca_resnet_backbone",
    "build_tsp_resnet_fpn_backbone",
    "register_datasets",
]

# The drawn shapes.
register_unknown_datasets(get_cfg())
