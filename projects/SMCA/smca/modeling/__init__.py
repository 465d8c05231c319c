"""The model, in plain PyTorch.

Whoever writes a part subclasses :class:`Backbone`, :class:`Encoder` or :class:`Decoder`.
"""

from ..structures import Detections, Predictions
from .anchored_decoder import AnchoredSMCADecoder
from .backbone import ResNet
from .conditional import ConditionalDecoder
from .decoder import DETRDecoder
from .deformable import DeformableDecoder, DeformableEncoder
from .depthwise import DepthwiseEncoder
from .detector import Detector, build_detector
from .encoder import IntraMultiEncoder
from .heads import detect, detect_batch
from .memory import Memory
from .neck import Neck
from .parts import Backbone, BaseDetector, Decoder, Encoder
from .registry import SMCA_BACKBONE_REGISTRY, SMCA_DECODER_REGISTRY, SMCA_ENCODER_REGISTRY
from .smca_decoder import SMCADecoder
from .timm_backbone import TimmBackbone
from .tsp_fcos import TSPFCOS
from .up_detr import UPDETRDecoder

__all__ = [
    "SMCA_BACKBONE_REGISTRY",
    "SMCA_DECODER_REGISTRY",
    "SMCA_ENCODER_REGISTRY",
    "AnchoredSMCADecoder",
    "Backbone",
    "BaseDetector",
    "ConditionalDecoder",
    "DETRDecoder",
    "Decoder",
    "DeformableDecoder",
    "DeformableEncoder",
    "DepthwiseEncoder",
    "Detections",
    "Detector",
    "Encoder",
    "IntraMultiEncoder",
    "Memory",
    "Neck",
    "Predictions",
    "ResNet",
    "SMCADecoder",
    "TSPFCOS",
    "TimmBackbone",
    "UPDETRDecoder",
    "build_detector",
    "detect",
    "detect_batch",
]
