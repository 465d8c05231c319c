"""Where encoders and decoders are found by the names in ``MODEL.SMCA.{ENCODER,DECODER}.NAME``."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry
from torch import nn

from ..errors import ConfigError

SMCA_ENCODER_REGISTRY = Registry("SMCA_ENCODER")
SMCA_ENCODER_REGISTRY.__doc__ = """
Encoders: ``from_config(cfg) -> dict`` of constructor arguments, and ``forward(memory) -> memory``
with a :class:`~smca.modeling.memory.Memory` in and out. One with a true attribute ``halves`` is
given scales of which each has twice the stride of the one before.
"""

SMCA_DECODER_REGISTRY = Registry("SMCA_DECODER")
SMCA_DECODER_REGISTRY.__doc__ = """
Decoders: ``from_config(cfg) -> dict`` of constructor arguments, and
``forward(memory) -> (hidden (layers, B, N, C), reference)``, the reference being (B, N, 2) logits,
(layers, B, N, 4) or None. A decoder with a true attribute ``refines`` is called
``forward(memory, box_offsets)``, with :meth:`~smca.modeling.heads.DetectionHeads.box_offsets`; one
with ``head_options`` has them as keyword arguments of its
:class:`~smca.modeling.heads.DetectionHeads`.
"""


def build_from_registry(registry: Registry, cfg: CfgNode, key: str, name: str) -> nn.Module:
    """The part that ``registry`` holds under ``name``, the value of the config key ``key``.

    Raises:
        ConfigError: ``name`` is not registered.
    """
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry))
        raise ConfigError(f"{key} is {name!r}; it must be one of {known}")
    part = registry.get(name)
    return part(**part.from_config(cfg))
