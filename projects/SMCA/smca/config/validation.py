"""Refuse values that cannot work, with the key's name, before anything is built or read."""

import logging
from collections.abc import Collection, Mapping

import torch
from fvcore.common.config import CfgNode as CN

from ..errors import ConfigError
from .files import flatten
from .keys import only_trains
from .model_keys import MODEL_KEYS, OWN_MODELS
from .rules import DEVICE, Key
from .run_keys import RUN_KEYS

logger = logging.getLogger(__name__)


def is_own_model(cfg: CN) -> bool:
    """Whether the config is for one of the project's models, and not for one of Detectron2's."""
    return cfg.MODEL.META_ARCHITECTURE in OWN_MODELS


def is_tsp(cfg: CN) -> bool:
    """Whether the config is for TSP-FCOS, which has other parts than the DETR family."""
    return cfg.MODEL.META_ARCHITECTURE == "TSPFCOS"


def pretrains(cfg: CN) -> bool:
    """Whether the config is UP-DETR's pre-training, which reads images without annotations."""
    own = is_own_model(cfg) and not is_tsp(cfg)
    return own and cfg.MODEL.SMCA.DECODER.NAME == "UPDETRDecoder"


def require_own_model(cfg: CN) -> None:
    """Raise a ConfigError if the config is for a model of Detectron2."""
    if not is_own_model(cfg):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; it must be 'SMCA' or "
            "'TSPFCOS', or one of Detectron2's in its own host: train_net.py --engine detectron2, "
            'or smca.Predictor(..., engine="detectron2")'
        )


def validate_model(cfg: CN) -> None:
    """Raise a ConfigError if a value allows no model to be built; it names what is allowed."""
    require_own_model(cfg)
    _check_model(cfg)
    name = "DATASETS.COCO_FORMAT"  # a model on Detectron2 registers them
    _check_each({name: RUN_KEYS[name]}, cfg)
    if cfg.MODEL.SMCA.NUM_CLASSES == 0:
        raise _fault(
            cfg,
            "MODEL.SMCA.NUM_CLASSES",
            "at least 1 to build a model; where training or evaluation starts, 0 is replaced by "
            "the number in the data, which the config.yaml of the run then has",
        )


def validate(cfg: CN, *, to_train: bool = True, but: Collection[str] = ()) -> None:
    """Raise a ConfigError if a value allows no run; it names what is allowed.

    MODEL.SMCA.NUM_CLASSES may still be 0. Detectron2 checks its own models itself.

    Args:
        to_train: if False, the run predicts, and keys that :func:`only_trains` may have any value.
        but: keys that are not checked, because a program of the user's own reads them.
    """
    if is_own_model(cfg):
        _check_model(cfg)
    read = [key for key in RUN_KEYS if key not in but and (to_train or not only_trains(key))]
    _check_each({key: RUN_KEYS[key] for key in read}, cfg)
    if not to_train:
        return
    solver, sizes = cfg.SOLVER, cfg.INPUT.MIN_SIZE_TRAIN
    if solver.RESCALE_INTERVAL and solver.WARMUP_ITERS >= solver.MAX_ITER:
        allowed = f"less than SOLVER.MAX_ITER ({solver.MAX_ITER}) with SOLVER.RESCALE_INTERVAL"
        raise _fault(cfg, "SOLVER.WARMUP_ITERS", allowed)
    if solver.NESTEROV and solver.OPTIMIZER == "AdamW" and "SOLVER.OPTIMIZER" not in but:
        raise _fault(cfg, "SOLVER.NESTEROV", "False with SOLVER.OPTIMIZER 'AdamW'")
    is_range = isinstance(sizes, (list, tuple)) and len(sizes) == 2 and sizes[0] <= sizes[1]
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not is_range:
        allowed = "two sizes, least and greatest, with INPUT.MIN_SIZE_TRAIN_SAMPLING 'range'"
        raise _fault(cfg, "INPUT.MIN_SIZE_TRAIN", allowed)
    if pretrains(cfg):
        for name in (
            *("DATASETS.TEST", "VIS_PERIOD"),
            *("DATALOADER.ASPECT_RATIO_GROUPING", "INPUT.CROP.ENABLED"),
        ):
            if value := flatten(cfg)[name]:
                allowed = f"{type(value)()!r} to pre-train, which finds patches of whole images"
                raise _fault(cfg, name, allowed)
        if cfg.MODEL.SMCA.NUM_CLASSES != 2:
            raise _fault(cfg, "MODEL.SMCA.NUM_CLASSES", "2 to pre-train, where class 1 is a patch")
    detections = cfg.TEST.DETECTIONS_PER_IMAGE
    if max(100, detections) < cfg.TEST.MAX_DETS_PER_IMAGE:
        allowed = f"at most TEST.DETECTIONS_PER_IMAGE ({detections}), which is to be raised as well"
        raise _fault(cfg, "TEST.MAX_DETS_PER_IMAGE", allowed)


def _check_model(cfg: CN) -> None:
    _check_each(MODEL_KEYS, cfg)
    smca = cfg.MODEL.SMCA
    if smca.HIDDEN_DIM % smca.NHEADS or smca.HIDDEN_DIM % 4:
        allowed = f"a multiple of 4 and of MODEL.SMCA.NHEADS ({smca.NHEADS})"
        raise _fault(cfg, "MODEL.SMCA.HIDDEN_DIM", allowed)
    if not 0 < len(set(smca.IN_FEATURES)) == len(smca.IN_FEATURES) <= smca.NUM_SCALES:
        allowed = (
            f"1 to MODEL.SMCA.NUM_SCALES ({smca.NUM_SCALES}) names of backbone maps, each once"
        )
        raise _fault(cfg, "MODEL.SMCA.IN_FEATURES", allowed)


def _check_each(keys: Mapping[str, Key], cfg: CN) -> None:
    """Check the values of keys one by one; those beside an ENABLED only where it is true."""
    values = flatten(cfg)
    for name, key in keys.items():
        group = name.rpartition(".")[0]
        if key.rule and values.get(f"{group}.ENABLED", True) and not key.rule.allows(values[name]):
            raise _fault(cfg, name, key.rule.words)


def _fault(cfg: CN, name: str, allowed: str) -> ConfigError:
    return ConfigError(f"{name} is {flatten(cfg)[name]!r}; it must be {allowed}")


def choose_device(cfg: CN, device: str | torch.device | None = None) -> torch.device:
    """``device``; or where it is None MODEL.DEVICE, and the CPU where there is no such GPU.

    Raises:
        ConfigError: torch has no such device, or there is no GPU for a ``device`` that is one.
    """
    try:
        chosen = torch.device(device or cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ConfigError(f"device {device or cfg.MODEL.DEVICE!r}: {error}") from error
    if chosen.type != "cuda" and not DEVICE.allows(str(chosen)):
        raise ConfigError(
            f"device {str(chosen)!r}: torch {torch.__version__} has none here; take 'cpu'"
        )
    if chosen.type != "cuda" or torch.cuda.is_available():
        return chosen
    if device is not None:
        raise ConfigError(f"device {str(device)!r}: there is no GPU that torch can use; take 'cpu'")
    logger.info("MODEL.DEVICE is %s: there is no GPU, the CPU is used", chosen)
    return torch.device("cpu")
