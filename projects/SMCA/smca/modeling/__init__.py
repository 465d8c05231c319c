"""The model, in plain PyTorch.

Whoever writes a part subclasses :class:`Backbone`, :class:`Encoder` or :class:`Decoder`.
"""

from ..structures import Detections, Predictions
from .backbone import ResNet
from .detector import Detector, build_detector
from .heads import detect, detect_batch
from .memory import Memory
from .parts import Backbone, Decoder, Encoder
from .registry import SMCA_BACKBONE_REGISTRY, SMCA_DECODER_REGISTRY, SMCA_ENCODER_REGISTRY

# Imported for their registration.
from . import conditional, decoder, deformable, depthwise, encoder, smca_decoder, timm_backbone  # noqa: F401, E402, I001 isort:skip

__all__ = [
    "SMCA_BACKBONE_REGISTRY",
    "SMCA_DECODER_REGISTRY",
    "SMCA_ENCODER_REGISTRY",
    "Backbone",
    "Decoder",
    "Detections",
    "Detector",
    "Encoder",
    "Memory",
    "Predictions",
    "ResNet",
    "build_detector",
    "detect",
    "detect_batch",
]
