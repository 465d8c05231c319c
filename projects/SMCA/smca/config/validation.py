"""Refuse values that cannot work, with the key's name, before anything is built or read."""

from __future__ import annotations

from collections.abc import Mapping

from fvcore.common.config import CfgNode as CN

from ..errors import ConfigError
from .keys import flatten
from .model_keys import MODEL_KEYS
from .rules import Key
from .run_keys import RUN_KEYS


def is_own_model(cfg: CN) -> bool:
    """Whether the config is for the project's model, and not for one of Detectron2's."""
    return cfg.MODEL.META_ARCHITECTURE == "SMCA"


def require_own_model(cfg: CN) -> None:
    """
    Raises:
        ConfigError: the config is for a model of Detectron2.
    """
    if not is_own_model(cfg):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; it must be 'SMCA', or "
            "one of Detectron2's with --engine detectron2"
        )


def validate_model(cfg: CN) -> None:
    """Refuse values that no model can be built with.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    require_own_model(cfg)
    _check_model(cfg)
    _require(
        cfg.MODEL.SMCA.NUM_CLASSES > 0,
        "MODEL.SMCA.NUM_CLASSES",
        cfg.MODEL.SMCA.NUM_CLASSES,
        "at least 1 to build a model; where training or evaluation starts, 0 is replaced by the "
        "number in the data, which the config.yaml of the run then has",
    )


def validate(cfg: CN) -> None:
    """Refuse values that no run can work with.

    MODEL.SMCA.NUM_CLASSES may still be 0. Detectron2 checks its own models itself.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    if is_own_model(cfg):
        _check_model(cfg)
    _check_each(RUN_KEYS, cfg)
    solver, inputs = cfg.SOLVER, cfg.INPUT
    _require(
        not solver.RESCALE_INTERVAL or solver.WARMUP_ITERS < solver.MAX_ITER,
        "SOLVER.WARMUP_ITERS",
        solver.WARMUP_ITERS,
        f"less than SOLVER.MAX_ITER ({solver.MAX_ITER}) with SOLVER.RESCALE_INTERVAL",
    )
    sizes = inputs.MIN_SIZE_TRAIN
    _require(
        inputs.MIN_SIZE_TRAIN_SAMPLING != "range"
        or (isinstance(sizes, (list, tuple)) and len(sizes) == 2 and sizes[0] <= sizes[1]),
        "INPUT.MIN_SIZE_TRAIN",
        sizes,
        "two sizes, least and greatest, with INPUT.MIN_SIZE_TRAIN_SAMPLING 'range'",
    )


def _check_model(cfg: CN) -> None:
    _check_each(MODEL_KEYS, cfg)
    smca = cfg.MODEL.SMCA
    _require(
        smca.HIDDEN_DIM % smca.NHEADS == 0 and smca.HIDDEN_DIM % 4 == 0,
        "MODEL.SMCA.HIDDEN_DIM",
        smca.HIDDEN_DIM,
        f"a multiple of 4 and of MODEL.SMCA.NHEADS ({smca.NHEADS})",
    )
    _require(
        0 < len(set(smca.IN_FEATURES)) == len(smca.IN_FEATURES) <= smca.NUM_SCALES,
        "MODEL.SMCA.IN_FEATURES",
        smca.IN_FEATURES,
        f"1 to MODEL.SMCA.NUM_SCALES ({smca.NUM_SCALES}) names of backbone maps, each once",
    )


def _check_each(keys: Mapping[str, Key], cfg: CN) -> None:
    """Check the values of keys one by one; those beside an ENABLED only where it is true."""
    values = flatten(cfg)
    for name, key in keys.items():
        group = name.rpartition(".")[0]
        if key.rule and values.get(f"{group}.ENABLED", True):
            _require(key.rule.allows(values[name]), name, values[name], key.rule.words)


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}")
