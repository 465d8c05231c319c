"""The config: its defaults from the table of keys, changed by files and command lines."""

import copy
import difflib
import os
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode as CN

from ..errors import ConfigError
from .files import flatten, read_config_file
from .model_keys import MODEL_KEYS, OWN_MODELS
from .rules import PATH, Key, Own, group
from .run_keys import RUN_KEYS

KEYS: Mapping[str, Key] = ChainMap(RUN_KEYS, MODEL_KEYS)

# Keys and groups of keys that only Detectron2 reads. The native host passes over them, because
# every `config.yaml` that Detectron2 writes has them.
DETECTRON2_ONLY = frozenset(
    """
    GLOBAL
    DATALOADER.REPEAT_SQRT DATALOADER.REPEAT_THRESHOLD
    DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
    DATASETS.PROPOSAL_FILES_TEST DATASETS.PROPOSAL_FILES_TRAIN
    INPUT.MASK_FORMAT
    MODEL.ANCHOR_GENERATOR MODEL.FPN MODEL.PANOPTIC_FPN MODEL.PROPOSAL_GENERATOR MODEL.RETINANET
    MODEL.ROI_BOX_CASCADE_HEAD MODEL.ROI_BOX_HEAD MODEL.ROI_HEADS MODEL.ROI_KEYPOINT_HEAD
    MODEL.ROI_MASK_HEAD MODEL.RPN MODEL.SEM_SEG_HEAD
    MODEL.RESNETS.DEFORM_MODULATED MODEL.RESNETS.DEFORM_NUM_GROUPS
    MODEL.RESNETS.OUT_FEATURES
    SOLVER.NUM_DECAYS
    TEST.AUG.FLIP TEST.AUG.MAX_SIZE TEST.AUG.MIN_SIZES TEST.EXPECTED_RESULTS
    TEST.KEYPOINT_OKS_SIGMAS TEST.PRECISE_BN.NUM_ITER
    """.split()  # noqa: SIM905
)

# Keys that say nothing of the model or its use: a config that only predicts may have any there.
_ONLY_TRAINS = re.compile(
    r"SOLVER\.|DATALOADER\.|INPUT\.(\w*TRAIN|CROP|RANDOM_FLIP)|MODEL\.(EMA|MASK_ON|KEYPOINT_ON|LOAD_"
    r"PROPOSALS)|DATASETS\.(?!COCO_FORMAT$|TRAIN$|TEST$)|TEST\.(?!DETECTIONS_PER_IMAGE$)|"
    r"(SEED|VIS_PERIOD|FLOAT32_PRECISION|CUDNN_BENCHMARK)$"
)
# Groups that Detectron2's backbones read, also below SMCA.
_BACKBONES = ("MODEL.FPN.", "MODEL.RESNETS.")


def only_trains(key: str) -> bool:
    """Whether nothing but training and evaluation reads the key, or would read it."""
    return _ONLY_TRAINS.match(key) is not None


def _is_of_detectron2(key: str) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in DETECTRON2_ONLY)


def register_keys(name: str, /, **keys: Own) -> None:
    """Register config keys of a part of your own, which the configs made from now on have.

        register_keys("MODEL.FOCUS", WIDTH=Own(1.0, "Width of the Gaussians.", POSITIVE))

    Args:
        name: the group of the keys.
        keys: their defaults, meanings and rules; see :class:`~smca.config.rules.Key`.

    Raises:
        ConfigError: a key or a group of keys of this name exists, here or in Detectron2, or a row
            is not an ``Own``.
    """
    for key, row in group(name, **keys).items():
        for known in (*KEYS, *DETECTRON2_ONLY):
            if f"{key}.".startswith(f"{known}.") or f"{known}.".startswith(f"{key}."):
                raise ConfigError(f"the config key {known} exists; give {key} another name")
        if not isinstance(row, Own):
            raise ConfigError(f"the config key {key} is {row!r}; it must be an Own(default, ...)")
        MODEL_KEYS[key] = row


def get_cfg() -> CN:
    """The whole config with its defaults, without Detectron2."""
    cfg = CN()
    _add(KEYS, cfg)
    return cfg


def add_smca_config(cfg: CN) -> None:
    """Add the project's own keys to Detectron2's config."""
    _add({name: key for name, key in KEYS.items() if isinstance(key, Own)}, cfg)


def _add(keys: Mapping[str, Key], cfg: CN) -> None:
    for name, key in keys.items():
        *parents, last = name.split(".")
        node = cfg
        for parent in parents:
            if parent not in node:
                # A node of another class could not be merged with those of a file.
                setattr(node, parent, type(cfg)())
            node = node[parent]
        setattr(node, last, copy.copy(key.default))


def load_cfg(
    cfg: CN, config_file: str = "", opts: Sequence[Any] = (), *, to_train: bool = True
) -> CN:
    """Merge a YAML file, with the files its ``_BASE_`` names, and ``KEY VALUE`` pairs into ``cfg``.

    Args:
        cfg: the defaults, of :func:`get_cfg` or of Detectron2 with :func:`add_smca_config`.
        config_file: path of a YAML file, or "".
        opts: keys and values in turn, as on a command line.
        to_train: if False, pass over what the file cannot set in keys that :func:`only_trains`.

    A single name or number stands for a list of one, "a,b" for a list of names, and ``~`` in
    OUTPUT_DIR and MODEL.WEIGHTS for the home folder.

    Raises:
        ConfigError: the file is missing or not YAML, a key does not exist (the nearest one is
            named), or a value has another type than the default.
    """
    defaults = flatten(cfg)
    native = "GLOBAL.HACK" not in defaults
    for key, value in read_config_file(config_file).items() if config_file else ():
        if native and key not in defaults and _is_of_detectron2(key):
            continue
        try:
            _set(cfg, key, value, defaults, config_file)
        except ConfigError:
            if to_train or not only_trains(key):
                raise
    if len(opts) % 2:
        raise ConfigError(
            f"options come as KEY VALUE pairs, such as MODEL.WEIGHTS model.pth DATASETS.TRAIN a,b; "
            f"{opts[-1]!r} has no value, or no key"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key.startswith("--"):
            raise ConfigError(f"{key} stands after KEY VALUE pairs; flags come before them")
        theirs = key.startswith("MODEL.") and not key.startswith(_BACKBONES)
        if cfg.MODEL.META_ARCHITECTURE in OWN_MODELS and theirs and _is_of_detectron2(key):
            raise ConfigError(
                f"{key} in the command line: only Detectron2's own models read it; SMCA has "
                "MODEL.SMCA.NUM_CLASSES, and demo.py's --threshold chooses the least score"
            )
        _set(cfg, key, value, defaults, "the command line")
    return cfg


def _set(cfg: CN, key: str, value: Any, defaults: Mapping[str, Any], source: str) -> None:
    if key not in defaults:
        if keys := [name for name in defaults if name.startswith(f"{key}.")]:
            raise ConfigError(f"{key} in {source} is a group of keys; set a key, such as {keys[0]}")
        near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.8)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else "a key of your own needs --import (in Python, import its module first)"
        )
        raise ConfigError(f"unknown config key {key} in {source}; {hint}")
    default = defaults[key]
    if value in (None, "None") and default is not None:
        empty = "()" if isinstance(default, (list, tuple)) else repr(default)
        raise ConfigError(f"{key} in {source} has no value; leave it out, or set {empty}")
    try:
        value = _fit(value, default)
        if key in KEYS and KEYS[key].rule is PATH and isinstance(value, str):
            value = os.path.expanduser(value)
        cfg.merge_from_list([key, value])
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{key} in {source} is {value!r}; it must have the type of its default, {default!r}"
        ) from error


def _fit(value: Any, default: Any) -> Any:
    """Bring what stands for a value of the default's type into that type; leave all else."""
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(str(value).lower(), value)
    if isinstance(default, float) or (default is None and value not in (None, "None")):
        return value if isinstance(value, bool) else float(value)  # a learning rate may be 1
    if not isinstance(default, (list, tuple)):
        return value
    value = CN._decode_cfg_value(value)
    if isinstance(value, str) and not any(isinstance(part, (int, float)) for part in default):
        names = (name.strip(" '\"") for name in value.strip(" ()[]").split(","))
        return [name for name in names if name]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [value] if is_number else value
