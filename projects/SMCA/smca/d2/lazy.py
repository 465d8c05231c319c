"""LazyConfigs: the parts beside the model's constructors, and runs that train them."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import detectron2.engine
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.solver import LRMultiplier
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.utils.data import DataLoader

from ..config import load_cfg
from ..engine.launch import launch
from ..errors import ConfigError
from ..training.solver import role_of, with_clipping
from .evaluation import CocoEvaluator
from .launch import main as train_or_evaluate
from .predictor import Detectron2Host
from .trainer import Trainer

# The calls that make up a LazyConfig, beside its settings in ``train``.
_CALLS = (
    *("model", "optimizer", "lr_multiplier"),
    *("dataloader.train", "dataloader.test", "dataloader.evaluator"),
)
# What Detectron2's own program reads alone.
_THEIRS = ("train.ddp", "train.log_period")
# Keys that the trainer and its start read in their own config: their places in a LazyConfig.
PLACES = {
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "VIS_PERIOD": "train.vis_period",
    "MODEL.DEVICE": "train.device",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "MODEL.BACKBONE.FREEZE_AT": "model.backbone.freeze_at",
    "MODEL.BACKBONE.FREEZE_RANDOM": "train.freeze_random",
    "MODEL.EMA.ENABLED": "train.ema.enabled",
    "MODEL.EMA.DECAY": "train.ema.decay",
    "MODEL.RESNETS.DEPTH": "model.backbone.depth",
    "MODEL.RESNETS.NORM": "model.backbone.norm",
    "MODEL.SMCA.NUM_CLASSES": "model.heads.num_logits",
    "INPUT.FORMAT": "dataloader.train.mapper.image_format",
    "INPUT.GREY_BITS": "dataloader.train.mapper.grey_bits",
    "DATASETS.COCO_FORMAT": "dataloader.coco_format",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "dataloader.train.dataset.filter_empty",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.BASE_LR": "optimizer.lr",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.AMP.PRECISION": "train.amp.precision",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.CLIP_GRADIENTS.ENABLED": "train.clip_grad.enabled",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": "train.clip_grad.max_norm",
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": "train.clip_grad.norm_type",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "TEST.PER_CLASS_AP": "dataloader.evaluator.by_class",
    "TEST.DETECTIONS_PER_IMAGE": "model.max_detections",
    "TEST.MAX_DETS_PER_IMAGE": "dataloader.evaluator.max_dets_per_image",
}


def learning_rate_factor(*, backbone: float = 1.0, sampling: float = 1.0) -> Callable[[str], float]:
    """Return the ``lr_factor_func`` of Detectron2's ``get_default_optimizer_params``, a function of
    a parameter's name.

    Args:
        backbone: learning rate of the backbone, as a fraction of the others'.
        sampling: the same for the parameters that place Deformable DETR's samples and references.
    """
    factors = {"backbone": backbone, "sampling": sampling}
    return lambda name: factors.get(role_of(name.split(".")), 1.0)


def adamw(params: Iterable, *, clip: Mapping[str, object], **options: object) -> torch.optim.AdamW:
    """Return AdamW that clips the norm of all gradients together.

    Args:
        params, options: of ``torch.optim.AdamW``.
        clip: ``enabled``, ``max_norm`` and ``norm_type``, as in ``train.clip_grad``.
    """
    keys = {"ENABLED": "enabled", "CLIP_VALUE": "max_norm", "NORM_TYPE": "norm_type"}
    node = CfgNode({key: clip[name] for key, name in keys.items()})
    return with_clipping(torch.optim.AdamW(params, **options), node)


def read(config_file: str, overrides: list[str]) -> DictConfig:
    """Read a LazyConfig and apply changes, such as ``train.max_iter=10``.

    A change may add an argument of a part's constructor; any other key must exist.

    Raises:
        ConfigError: the file is missing or no LazyConfig, or a change names no key.
    """
    if not os.path.isfile(config_file):
        raise ConfigError(f"config file {config_file!r} does not exist")
    lazy = LazyConfig.load(config_file)
    parts = {name: OmegaConf.select(lazy, name) for name in (*_CALLS, "train")}
    if missing := [name for name, part in parts.items() if part is None]:
        raise ConfigError(
            f"{config_file} is no LazyConfig to train: it has no {', '.join(missing)}; the YAML "
            "files of configs/ are for train_net.py"
        )
    OmegaConf.set_struct(lazy, True)
    for name in _CALLS:
        OmegaConf.set_struct(parts[name], False)
    for change in overrides:
        if change.startswith(_THEIRS):
            raise ConfigError(
                f"{change!r} is for Detectron2's own lazyconfig_train_net.py; this program logs "
                "every 20 iterations, and decides whether to use DDP"
            )
        try:
            LazyConfig.apply_overrides(lazy, [change])
        except (HydraException, OmegaConfBaseException, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"{change!r} cannot be set, changes are path.key=value: {reason}"
            ) from error
    OmegaConf.set_struct(lazy, None)
    for name in ("output_dir", "init_checkpoint"):
        if isinstance(path := OmegaConf.select(lazy.train, name), str):
            lazy.train[name] = os.path.expanduser(path)
    return lazy


def trainer_config(lazy: DictConfig) -> CfgNode:
    """Return the config of a trainer whose parts ``lazy`` describes."""
    changes: list[object] = ["MODEL.META_ARCHITECTURE", "SMCA", "MODEL.SMCA.NUM_CLASSES", 0]
    changes += ["MODEL.SMCA.LOSS.CLASSIFICATION", _classification(lazy)]
    changes += ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]
    for key, place in PLACES.items():
        value = OmegaConf.select(lazy, place)
        if value is None:
            continue
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        elif key in ("DATASETS.TRAIN", "DATASETS.TEST"):
            value = (value,)
        elif key == "MODEL.SMCA.NUM_CLASSES":
            value = max(0, value - _no_object_logits(lazy))
        changes += [key, value]
    return load_cfg(Detectron2Host.read(""), opts=changes)


def _no_object_logits(lazy: DictConfig) -> int:
    return int(_classification(lazy) == "softmax")


def _classification(lazy: DictConfig) -> str:
    return OmegaConf.select(lazy, "model.criterion.classification", default="focal")


class LazyTrainer(Trainer):
    """Trains the parts of a LazyConfig as :class:`Trainer` trains those of a YAML config."""

    lazy: DictConfig

    @classmethod
    def of(cls, lazy: DictConfig) -> type[LazyTrainer]:
        """Return the trainer class of one LazyConfig."""
        return type(cls.__name__, (cls,), {"lazy": lazy})

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return instantiate(cls.lazy.model).to(cfg.MODEL.DEVICE)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        cls.lazy.optimizer.params.model = model
        optimizer = instantiate(cls.lazy.optimizer)
        if "clip" in cls.lazy.optimizer:  # it clips the gradients itself
            return optimizer
        return with_clipping(optimizer, cfg.SOLVER.CLIP_GRADIENTS)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        return LRMultiplier(optimizer, instantiate(cls.lazy.lr_multiplier), cfg.SOLVER.MAX_ITER)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return instantiate(cls.lazy.dataloader.train)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return instantiate(cls.lazy.dataloader.test)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> CocoEvaluator:
        return instantiate(cls.lazy.dataloader.evaluator)


@contextmanager
def _lazy_names() -> Iterator[None]:
    """Name the places of a LazyConfig in messages, instead of the trainer's keys."""
    try:
        yield
    except Exception as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            message = error.args[0]
            for key, place in PLACES.items():
                message = re.sub(rf"\b{re.escape(key)}\b", place, message)
            error.args = (message,)
        raise


def run(args: argparse.Namespace) -> int:
    """Run the command line of Detectron2's ``default_argument_parser``; return the exit code."""
    lazy = read(args.config_file, args.opts)
    with _lazy_names():
        return launch(_main, trainer_config(lazy), args, start=detectron2.engine.launch)


@_lazy_names()
def _main(cfg: CfgNode, args: argparse.Namespace) -> None:
    lazy = read(args.config_file, args.opts)
    # The start has chosen a device that exists and looked at the data.
    lazy.train.device = cfg.MODEL.DEVICE
    if OmegaConf.select(lazy, "model.heads.num_logits") == 0:
        lazy.model.heads.num_logits = cfg.MODEL.SMCA.NUM_CLASSES + _no_object_logits(lazy)
    if OmegaConf.select(lazy, "dataloader.train.mapper.grey_bits") == 0:
        lazy.dataloader.train.mapper.grey_bits = cfg.INPUT.GREY_BITS
    train_or_evaluate(cfg, args, trainer=LazyTrainer.of(lazy), config=lazy)
