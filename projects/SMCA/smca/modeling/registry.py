"""The registries of backbones, encoders and decoders, which a config names.

The keys are ``MODEL.BACKBONE.NAME`` and ``MODEL.SMCA.{ENCODER,DECODER}.NAME``.
"""

from typing import Any

from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry

from ..imports import registered

SMCA_BACKBONE_REGISTRY = Registry("SMCA_BACKBONE")
SMCA_BACKBONE_REGISTRY.__doc__ = "Subclasses of :class:`~smca.modeling.parts.Backbone`, by name."

SMCA_ENCODER_REGISTRY = Registry("SMCA_ENCODER")
SMCA_ENCODER_REGISTRY.__doc__ = "Subclasses of :class:`~smca.modeling.parts.Encoder`, by name."

SMCA_DECODER_REGISTRY = Registry("SMCA_DECODER")
SMCA_DECODER_REGISTRY.__doc__ = "Subclasses of :class:`~smca.modeling.parts.Decoder`, by name."


def build_from_registry(
    registry: Registry, cfg: CfgNode, key: str, name: str, *, others: str = ""
) -> Any:
    """Build the part of this name from ``cfg``; see :func:`~smca.imports.registered`."""
    part = registered(registry, key, name, others=others)
    return part(**part.from_config(cfg))
