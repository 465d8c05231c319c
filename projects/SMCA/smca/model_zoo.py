"""The configs of configs/ by name, and the models they describe.

smca.model_zoo.list()                      # ["ablations/table2_fixed", ..., "smca_R50_50ep"]
smca.model_zoo.get("smca_R50_50ep", "model_final.pth")
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from .checkpoints import load
from .config import get_cfg, is_own_model, load_cfg
from .errors import ConfigError
from .modeling import Detector, build_detector

logger = logging.getLogger(__name__)

# Of an installed package, and of the repository.
_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[3] / "configs")


def list() -> Sequence[str]:
    """The names of all configs that are models, in alphabetical order: a list of strings."""
    return config_names(_folder())


def config_names(folder: Path) -> Sequence[str]:
    """The paths of the configs below a folder that are models, without ".yaml"."""
    return [
        file.relative_to(folder).with_suffix("").as_posix()
        for file in sorted(folder.rglob("*.yaml"))
        if not file.name.startswith("Base-")
    ]


def config_file(name: str) -> str:
    """The path of a config's YAML file, by its name, with or without ".yaml".

    Raises:
        ConfigError: there is none of this name; the nearest are named.
    """
    name = name.removesuffix(".yaml")
    known = list()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ConfigError(
            f"the model zoo has no config {name!r}; did you mean {' or '.join(near)}?"
            if near
            else f"the model zoo has no config {name!r}; smca.model_zoo.list() names them"
        )
    return str(_folder() / f"{name}.yaml")


def get_config(name: str, opts: Sequence[object] = ()) -> CfgNode:
    """The config of a name, with ``KEY, value, ...`` changes.

    Raises:
        ConfigError: no such name or key, or a value of another type.
    """
    return load_cfg(get_cfg(), config_file(name), opts)


def get(
    name: str,
    weights: str | os.PathLike | None = None,
    *,
    opts: Sequence[object] = (),
    device: str | torch.device | None = None,
) -> Detector:
    """The detector of a config, in evaluation mode.

    Args:
        name: of the config.
        weights: a checkpoint that has all of the model; "": the weights are random; None: they are
            as a training begins with them, MODEL.WEIGHTS and what that lacks random.
        opts: ``KEY, value, ...`` changes of the config.
        device: None is MODEL.DEVICE, or the CPU where there is no GPU.

    Raises:
        ConfigError: no such name, a value that cannot work, or a model that only Detectron2 builds.
        FileNotFoundError, CheckpointError: the checkpoint is missing or does not fit.
    """
    cfg = get_config(name, opts)
    if not is_own_model(cfg):
        raise ConfigError(
            f"{name} is Detectron2's own {cfg.MODEL.META_ARCHITECTURE} and needs Detectron2: "
            'take smca.Predictor(..., engine="detectron2") or train_net.py --engine detectron2'
        )
    device = choose_device(cfg, device)
    detector = build_detector(cfg)
    if weights is None and cfg.MODEL.WEIGHTS:
        load(detector, cfg.MODEL.WEIGHTS)
    elif weights:
        load(detector, weights, whole=True)
    return detector.to(device).eval()


def choose_device(cfg: CfgNode, device: str | torch.device | None = None) -> torch.device:
    """``device``; or where it is None MODEL.DEVICE, and the CPU where there is no such GPU.

    Raises:
        ConfigError: no device of this name, or none is there.
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


def _folder() -> Path:
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the configs are in none of {', '.join(map(str, _FOLDERS))}; install the package anew"
    )
