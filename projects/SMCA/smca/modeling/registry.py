"""The registries of backbones, encoders and decoders, which a config names.

The keys are ``MODEL.BACKBONE.NAME`` and ``MODEL.SMCA.{ENCODER,DECODER}.NAME``.
"""

from typing import Any

from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry

from ..errors import ConfigError

SMCA_BACKBONE_REGISTRY = Registry("SMCA_BACKBONE")
SMCA_BACKBONE_REGISTRY.__doc__ = "Subclasses of :class:`~smca.modeling.parts.Backbone`, by name."

SMCA_ENCODER_REGISTRY = Registry("SMCA_ENCODER")
SMCA_ENCODER_REGISTRY.__doc__ = "Subclasses of :class:`~smca.modeling.parts.Encoder`, by name."

SMCA_DECODER_REGISTRY = Registry("SMCA_DECODER")
SMCA_DECODER_REGISTRY.__doc__ = "Subclasses of :class:`~smca.modeling.parts.Decoder`, by name."


def build_from_registry(
    registry: Registry, cfg: CfgNode, key: str, name: str, *, others: str = ""
) -> Any:
    """Build the part that ``registry`` holds under ``name``, the value of the config key ``key``.

    Args:
        others: words for names that are allowed elsewhere, for the message.

    Raises:
        ConfigError: ``name`` is not registered.
    """
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry))
        raise ConfigError(
            f"{key} is {name!r}; it must be one of {known}{others}, or needs --import"
        )
    part = registry.get(name)
    return part(**part.from_config(cfg))
