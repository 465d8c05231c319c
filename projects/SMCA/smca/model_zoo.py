"""The configs of configs/ by name, and the models they describe.

smca.model_zoo.list()                      # ["ablations/table2_fixed", ..., "smca_R50_50ep"]
smca.model_zoo.get("smca_R50_50ep", "model_final.pth")
"""

import os
from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode

from .checkpoints import load
from .config import choose_device, config_file, config_names, get_cfg, load_cfg, require_own_model
from .modeling import BaseDetector, build_detector


def list() -> Sequence[str]:
    """The names of all configs that are models, in alphabetical order: a list of strings."""
    return config_names()


def get_config(name: str, opts: Sequence[object] = ()) -> CfgNode:
    """The config of this name, with ``KEY, value, ...`` changes.

    Raises:
        ConfigError: an unknown name or key, or a value of another type.
    """
    return load_cfg(get_cfg(), config_file(name), opts)


def get(
    name: str,
    weights: str | os.PathLike | None = None,
    *,
    opts: Sequence[object] = (),
    device: str | torch.device | None = None,
) -> BaseDetector:
    """The detector of a config, in evaluation mode.

    Args:
        name: of the config.
        weights: a checkpoint that has the whole model; "": random weights; None: the weights that
            training starts with, MODEL.WEIGHTS and random ones for the rest.
        opts: ``KEY, value, ...`` changes of the config.
        device: None is MODEL.DEVICE, or the CPU where there is no GPU.

    Raises:
        ConfigError: an unknown name, a value that cannot work, or a model that only Detectron2
            builds.
        FileNotFoundError, CheckpointError: the checkpoint is missing or does not fit.
    """
    cfg = get_config(name, opts)
    require_own_model(cfg)
    device = choose_device(cfg, device)
    detector = build_detector(cfg)
    if weights is None and cfg.MODEL.WEIGHTS:
        load(detector, cfg.MODEL.WEIGHTS)
    elif weights:
        load(detector, weights, strict=True)
    return detector.to(device).eval()
