"""The optimizer for Detectron2's own trainers and loops, whose builder knows SGD alone."""

import logging
import traceback
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..checkpoints.loading import frozen_tensors, some
from ..config import flatten
from ..errors import ConfigError
from ..training import solver

logger = logging.getLogger(__name__)

# Models that train with an optimizer that is not known yet, and the keys it may not read.
watched: WeakKeyDictionary[nn.Module, Sequence[str]] = WeakKeyDictionary()
_REMEDY = (
    "take smca.d2.Trainer(cfg), or `return smca.d2.build_optimizer(cfg, model)` as the "
    "build_optimizer of your trainer"
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of ``cfg``, with its learning rates by part and full-model clipping.

    A trainer of Detectron2 does not read some keys of this project; it is refused a config in
    which they matter.

    Raises:
        ConfigError: such a key is set, or nothing will fill the frozen stages of the backbone.
    """
    only_ours = {
        "MODEL.EMA.ENABLED": cfg.MODEL.EMA.ENABLED,
        "SOLVER.AMP.PRECISION": cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.PRECISION == "bfloat16",
    }
    for key, is_set in only_ours.items():
        if is_set:
            raise ConfigError(
                f"Detectron2's trainers do not read {key}; take smca.d2.Trainer in place of "
                "DefaultTrainer, or leave the key at its default"
            )
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE != "full_model":
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; it must be 'full_model', or "
            "take Detectron2's own build_optimizer"
        )
    frozen = frozen_tensors(model)
    if frozen and not cfg.MODEL.WEIGHTS and not cfg.MODEL.BACKBONE.FREEZE_RANDOM:
        raise ConfigError(
            f"MODEL.WEIGHTS is empty, which leaves random what training does not change: "
            f"{some(frozen)}; set it to the weights of a backbone, as the files of configs/ do "
            "(MODEL.BACKBONE.FREEZE_RANDOM True trains all the same)"
        )
    model.unread = ()
    return solver.build_optimizer(cfg, model)


def unread_keys(cfg: CfgNode) -> list[str]:
    """The keys, with their values, that Detectron2's own optimizer would not follow."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    is_unread = {
        "OPTIMIZER": cfg.SOLVER.OPTIMIZER != "SGD",
        "BACKBONE_MULTIPLIER": cfg.SOLVER.BACKBONE_MULTIPLIER != 1,
        "ENCODER_MULTIPLIER": cfg.SOLVER.ENCODER_MULTIPLIER != 1,
        "CLIP_GRADIENTS.CLIP_TYPE": clip.ENABLED and clip.CLIP_TYPE == "full_model",
    }
    values = flatten(cfg.SOLVER)
    return [f"SOLVER.{key} {values[key]}" for key, unread in is_unread.items() if unread]


def refuse_default_trainer(unread: Sequence[str]) -> None:
    """Refuse to build a model for a DefaultTrainer that has Detectron2's own optimizer.

    Its optimizer would fail on CLIP_TYPE, or else be SGD in silence. Only the trainer knows that it
    is one, so it is looked for among the callers.

    Raises:
        ConfigError: there is one, and keys are ``unread``.
    """
    theirs = DefaultTrainer.build_optimizer.__func__
    for frame, _ in traceback.walk_stack(None) if unread else ():
        trainer = frame.f_locals.get("self")
        if not isinstance(trainer, DefaultTrainer):
            continue
        if getattr(trainer.build_optimizer, "__func__", None) is theirs:
            raise ConfigError(
                f"the optimizer of Detectron2's DefaultTrainer is SGD, and does not read "
                f"{', '.join(unread)}; {_REMEDY} (docs/DETECTRON2.md)"
            )


def _warn_of_sgd(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Before any optimizer's step: warn if it is the first of a watched model, and of SGD."""
    for model, unread in list(watched.items()):
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if trained.isdisjoint(map(id, model.parameters())):
            continue
        del watched[model]
        if isinstance(optimizer, torch.optim.SGD):
            keys = ", ".join(unread)
            logger.warning("training with SGD, which does not read %s; %s", keys, _REMEDY)


register_optimizer_step_pre_hook(_warn_of_sgd)
