"""Values that cannot work are refused before anything is built or read, with the key's name."""

from __future__ import annotations

import math
from typing import Any

import torch
from fvcore.common.config import CfgNode as CN

from ..errors import ConfigError
from .keys import PRECISION_CHANNELS, flatten

_CHOICES = {
    "MODEL.SMCA.MODULATION.HEADS": ("multi", "shared"),
    "MODEL.SMCA.MODULATION.SCALE": tuple(PRECISION_CHANNELS),
    "MODEL.SMCA.NECK.NORM": ("", "GN"),
    "MODEL.SMCA.ENCODER.RECOMPUTE": ("none", "multi", "all"),
    "MODEL.SMCA.CONDITIONAL.SPATIAL_QUERY": ("CSQ", "CSQ-C", "CSQ-T", "CSQ-P", "CSQ-I"),
    "MODEL.SMCA.CONDITIONAL.REFERENCE": ("query", "parameter"),
    "MODEL.SMCA.LOSS.CLASSIFICATION": ("focal", "softmax"),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.BACKBONE.FREEZE_AT": (0, 1, 2, 3, 4, 5),
}
_SOLVER_CHOICES = {
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.OPTIMIZER": ("AdamW", "SGD"),
    "SOLVER.AMP.PRECISION": ("auto", "bfloat16", "float16"),
}
_AT_LEAST = {
    "MODEL.SMCA.NUM_CLASSES": 0,
    "MODEL.SMCA.NUM_QUERIES": 1,
    "MODEL.SMCA.HIDDEN_DIM": 4,
    "MODEL.SMCA.NHEADS": 1,
    "MODEL.SMCA.DIM_FEEDFORWARD": 1,
    "MODEL.SMCA.NUM_SCALES": 1,
    "MODEL.SMCA.ENCODER.NUM_LAYERS": 0,
    "MODEL.SMCA.ENCODER.KERNEL_SIZE": 1,
    "MODEL.SMCA.DEFORMABLE.NUM_POINTS": 1,
    "MODEL.SMCA.DECODER.NUM_LAYERS": 1,
    "MODEL.SMCA.MODULATION.CENTER_LAYERS": 1,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 1,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 1,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 1,
    "TEST.DETECTIONS_PER_IMAGE": 1,
}
_SOLVER_AT_LEAST = {
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.MAX_SIZE_TEST": 1,
    "INPUT.MAX_SIZE_TRAIN": 1,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.MOMENTUM": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.WEIGHT_DECAY_NORM": 0,
    "SOLVER.BACKBONE_MULTIPLIER": 0,
    "SOLVER.SAMPLING_MULTIPLIER": 0,
    "SOLVER.BASE_LR_END": 0,
    "VIS_PERIOD": 0,
}
# What lists hold; CROP.SIZE only where it is used.
_PARTS: dict[str, Any] = {
    "MODEL.SMCA.IN_FEATURES": str,
    "MODEL.SMCA.ENCODER.BLOCKS": str,
    "MODEL.PIXEL_MEAN": (int, float),
    "MODEL.PIXEL_STD": (int, float),
    "INPUT.MIN_SIZE_TRAIN": int,
    "INPUT.CROP.MIN_SIZE_BEFORE": int,
    "DATASETS.TRAIN": str,
    "DATASETS.TEST": str,
    "DATASETS.COCO_FORMAT": (list, tuple),
    "SOLVER.STEPS": int,
}
_IN_WORDS = {
    str: "names",
    int: "whole numbers",
    (int, float): "finite numbers",
    (list, tuple): "a list of [name, annotation file, image folder]",
}
# Infinite, these leave out what they bound, or take the greatest gradient for the norm.
_INFINITE = {
    "MODEL.SMCA.MODULATION.BETA",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE",
}


def is_own_model(cfg: CN) -> bool:
    """Whether the config is for the project's model, and not for one of Detectron2."""
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
    """Refuse model values that cannot work, before anything is built.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    require_own_model(cfg)
    _check_numbers(cfg)
    _check_model(cfg)
    _require(
        cfg.MODEL.SMCA.NUM_CLASSES > 0,
        "MODEL.SMCA.NUM_CLASSES",
        cfg.MODEL.SMCA.NUM_CLASSES,
        "at least 1 to build a model; where training or evaluation starts, 0 is replaced by the "
        "number in the data, which the config.yaml of the run then has",
    )


def _check_model(cfg: CN) -> None:
    _check_table(cfg, _CHOICES, _AT_LEAST)
    smca = cfg.MODEL.SMCA
    _require(
        smca.HIDDEN_DIM % smca.NHEADS == 0 and smca.HIDDEN_DIM % 4 == 0,
        "MODEL.SMCA.HIDDEN_DIM",
        smca.HIDDEN_DIM,
        f"a multiple of 4 and of MODEL.SMCA.NHEADS ({smca.NHEADS})",
    )
    _require(
        smca.ENCODER.KERNEL_SIZE % 2 == 1,
        "MODEL.SMCA.ENCODER.KERNEL_SIZE",
        smca.ENCODER.KERNEL_SIZE,
        "odd",
    )
    for key in ("DROPOUT", "ATTENTION_DROPOUT"):
        _require(0 <= smca[key] < 1, f"MODEL.SMCA.{key}", smca[key], "in [0, 1)")
    _require(
        0 < len(set(smca.IN_FEATURES)) == len(smca.IN_FEATURES) <= smca.NUM_SCALES,
        "MODEL.SMCA.IN_FEATURES",
        smca.IN_FEATURES,
        f"1 to MODEL.SMCA.NUM_SCALES ({smca.NUM_SCALES}) names of backbone maps, each once",
    )
    _require(
        set(smca.ENCODER.BLOCKS) <= {"intra", "multi"},
        "MODEL.SMCA.ENCODER.BLOCKS",
        smca.ENCODER.BLOCKS,
        "a list of 'intra' and 'multi'",
    )
    _require(
        smca.MODULATION.BETA > 0, "MODEL.SMCA.MODULATION.BETA", smca.MODULATION.BETA, "positive"
    )
    for group, keys in (
        ("LOSS", ("CLASS_WEIGHT", "L1_WEIGHT", "GIOU_WEIGHT", "FOCAL_GAMMA", "NO_OBJECT_WEIGHT")),
        ("MATCHER", ("CLASS_COST", "L1_COST", "GIOU_COST")),
    ):
        for key in keys:
            value = smca[group][key]
            finite = 0 <= value < math.inf
            _require(finite, f"MODEL.SMCA.{group}.{key}", value, "finite and at least 0")
    alpha = smca.LOSS.FOCAL_ALPHA
    _require(0 <= alpha <= 1, "MODEL.SMCA.LOSS.FOCAL_ALPHA", alpha, "in [0, 1]")
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        _require(len(cfg.MODEL[key]) == 3, f"MODEL.{key}", cfg.MODEL[key], "three numbers")
    std = cfg.MODEL.PIXEL_STD
    _require(min(std) > 0, "MODEL.PIXEL_STD", std, "three positive numbers")
    try:
        device = torch.device(cfg.MODEL.DEVICE)
        if device.type != "cuda":  # for which the CPU stands in
            torch.zeros((), device=device)
    except RuntimeError:
        _require(False, "MODEL.DEVICE", cfg.MODEL.DEVICE, "'cuda' or 'cpu'")


def validate(cfg: CN) -> None:
    """Refuse values that cannot work: the model's, and what data, solver and evaluation read.

    MODEL.SMCA.NUM_CLASSES may still be 0. The models of Detectron2 itself are left for Detectron2
    to check.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    _check_numbers(cfg)
    if is_own_model(cfg):
        _check_model(cfg)
    _check_table(cfg, _SOLVER_CHOICES, _SOLVER_AT_LEAST)
    for key in ("BASE_LR", "GAMMA"):
        _require(cfg.SOLVER[key] > 0, f"SOLVER.{key}", cfg.SOLVER[key], "positive")
    decay = cfg.MODEL.EMA.DECAY
    _require(0 <= decay < 1, "MODEL.EMA.DECAY", decay, "in [0, 1)")
    steps = list(cfg.SOLVER.STEPS)
    ascending = steps == sorted(set(steps)) and min(steps, default=1) > 0
    _require(ascending, "SOLVER.STEPS", tuple(steps), "positive, in ascending order")
    warmup = cfg.SOLVER.WARMUP_FACTOR
    _require(0 <= warmup <= 1, "SOLVER.WARMUP_FACTOR", warmup, "in [0, 1]")
    _require(
        not cfg.SOLVER.RESCALE_INTERVAL or cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER,
        "SOLVER.WARMUP_ITERS",
        cfg.SOLVER.WARMUP_ITERS,
        f"less than SOLVER.MAX_ITER ({cfg.SOLVER.MAX_ITER}) with SOLVER.RESCALE_INTERVAL",
    )
    _require(cfg.SEED < 2**63, "SEED", cfg.SEED, "less than 2 ** 63")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED:
        name = "SOLVER.CLIP_GRADIENTS"
        _require(clip.CLIP_TYPE == "full_model", f"{name}.CLIP_TYPE", clip.CLIP_TYPE, "full_model")
        for key in ("CLIP_VALUE", "NORM_TYPE"):
            _require(clip[key] > 0, f"{name}.{key}", clip[key], "positive")
    if cfg.INPUT.CROP.ENABLED:
        crop = cfg.INPUT.CROP
        _require(crop.TYPE == "absolute_range", "INPUT.CROP.TYPE", crop.TYPE, "'absolute_range'")
        _require(
            [type(side) for side in crop.SIZE] == [int, int] and 0 < crop.SIZE[0] <= crop.SIZE[1],
            "INPUT.CROP.SIZE",
            crop.SIZE,
            "[least, most] in pixels",
        )
        before = crop.MIN_SIZE_BEFORE
        _require(len(before) > 0 and min(before) > 0, "INPUT.CROP.MIN_SIZE_BEFORE", before, "sizes")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    in_range = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    ascending = len(sizes) == 2 and sizes[0] <= sizes[1]
    _require(
        min(sizes, default=-1) >= 0 and (ascending or not in_range),
        "INPUT.MIN_SIZE_TRAIN",
        sizes,
        "sizes in pixels" + (" (two: least and most)" if in_range else ""),
    )
    for entry in cfg.DATASETS.COCO_FORMAT:
        _require(
            len(entry) == 3 and all(isinstance(part, str) for part in entry),
            "DATASETS.COCO_FORMAT",
            entry,
            "a list of [name, annotation file, image folder]",
        )


def _check_numbers(cfg: CN) -> None:
    """Numbers are finite, and lists hold what they are lists of."""
    flat: dict[str, Any] = flatten(cfg)
    for key, kind in _PARTS.items():
        parts = flat[key] if isinstance(flat[key], (list, tuple)) else [flat[key]]
        fits = all(isinstance(part, kind) and not isinstance(part, bool) for part in parts)
        _require(fits and all(map(_is_finite, parts)), key, flat[key], _IN_WORDS[kind])
    for key, value in flat.items():
        fits = _is_finite(value) or (key in _INFINITE and value > 0)
        _require(fits, key, value, "finite")


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _check_table(cfg: CN, choices: dict, at_least: dict) -> None:
    flat = flatten(cfg)
    for key, allowed in choices.items():
        _require(flat[key] in allowed, key, flat[key], "one of " + ", ".join(map(repr, allowed)))
    for key, least in at_least.items():
        _require(flat[key] >= least, key, flat[key], f"at least {least}")


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value!r}; it must be {allowed}")
