"""The device that a model is built for."""

from __future__ import annotations

import logging

import torch
from fvcore.common.config import CfgNode

from ..errors import ConfigError

logger = logging.getLogger(__name__)


def choose_device(cfg: CfgNode, device: str | torch.device | None = None) -> torch.device:
    """``device``; or where it is None MODEL.DEVICE, and the CPU where there is no such GPU.

    Raises:
        ConfigError: torch has no such device, or there is no GPU for a ``device`` that is one.
    """
    try:
        chosen = torch.device(device or cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ConfigError(f"device {device or cfg.MODEL.DEVICE!r}: {error}") from error
    if chosen.type != "cuda" or torch.cuda.is_available():
        return chosen
    if device is not None:
        raise ConfigError(f"device {str(device)!r}: there is no GPU that torch can use; take 'cpu'")
    logger.info("MODEL.DEVICE is %s: there is no GPU, the CPU is used", chosen)
    return torch.device("cpu")
