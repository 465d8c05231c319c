"""The optimizer and learning-rate schedule of a configuration, the same in both hosts."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn

from ..config import validate
from ..errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

_FUSED = ("cpu", "cuda")
# The layers that place Deformable DETR's samples and references.
_SAMPLING = {"sampling_offsets", "sampling_reference"}
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer SOLVER.OPTIMIZER, :func:`with_clipping`.

    The backbone, the encoder and the layers that place samples have learning rates of their own,
    and normalisation layers have their own weight decay. With "SGD+AdamW" AdamW trains the encoder,
    whose gradients alone are clipped.

    Raises:
        ConfigError: there is no encoder to train, or nothing else.
    """
    solver = cfg.SOLVER
    multipliers = {
        "": 1.0,
        "backbone": solver.BACKBONE_MULTIPLIER,
        "encoder": solver.ENCODER_MULTIPLIER,
        "sampling": solver.SAMPLING_MULTIPLIER,
    }
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for module_name, module in model.named_modules():
        role = role_of(module_name.split("."))
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rate = solver.BASE_LR * multipliers[role]
            is_norm = isinstance(module, _NORMS)
            decay = solver.WEIGHT_DECAY_NORM if is_norm else solver.WEIGHT_DECAY
            if name == "bias":
                rate *= solver.BIAS_LR_FACTOR
                decay = decay if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
            adamw = solver.OPTIMIZER == "AdamW" or (solver.OPTIMIZER != "SGD" and role == "encoder")
            groups.setdefault((adamw, rate, decay), []).append(parameter)
    by_adamw: list[dict] = []
    by_sgd: list[dict] = []
    for (adamw, rate, decay), parameters in groups.items():
        described = {"params": parameters, "lr": rate, "weight_decay": decay}
        (by_adamw if adamw else by_sgd).append(described)
    momentum: dict[str, Any] = {
        "momentum": solver.MOMENTUM,
        "nesterov": solver.NESTEROV and solver.MOMENTUM > 0,  # else it is plain SGD
    }
    # The fused kernel passes once over each parameter. SGD's has uninitialised memory for momentum
    # if AMP skips the first step, which it does when the scaled gradients overflow.
    fused: dict[str, Any] = {"fused": next(model.parameters()).device.type in _FUSED}
    optimizer: torch.optim.Optimizer
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(by_sgd, lr=solver.BASE_LR, **momentum)
    elif solver.OPTIMIZER == "AdamW":
        optimizer = torch.optim.AdamW(by_adamw, lr=solver.BASE_LR, **fused)
    elif by_sgd and by_adamw:
        optimizer = SGDWithAdamW(by_sgd, by_adamw, momentum=momentum, adamw=fused)
    else:
        raise ConfigError(
            "SOLVER.OPTIMIZER is 'SGD+AdamW', which needs an encoder and other parts to train; "
            "take one of the two"
        )
    return with_clipping(optimizer, solver.CLIP_GRADIENTS)


class SGDWithAdamW(torch.optim.Optimizer):
    """SGD of some parameters and AdamW of others (TSP, arXiv 2011.10881), as one optimizer.

    Its groups are SGD's and then AdamW's.
    """

    def __init__(
        self,
        by_sgd: Sequence[dict],
        by_adamw: Sequence[dict],
        *,
        momentum: dict[str, Any],
        adamw: dict[str, Any],
    ):
        """
        Args:
            by_sgd, by_adamw: groups of parameters, with ``lr`` and ``weight_decay``.
            momentum, adamw: further arguments of torch's SGD and AdamW.
        """
        self.rules = torch.optim.SGD(by_sgd, **momentum), torch.optim.AdamW(by_adamw, **adamw)
        super().__init__([group for rule in self.rules for group in rule.param_groups], {})
        self._share()

    @property
    def clipped_groups(self) -> list[dict]:
        """The groups whose gradients are clipped, AdamW's."""
        return self.rules[1].param_groups

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Have both rules read and write the groups and the state of this optimizer."""
        number = len(self.rules[0].param_groups)
        groups = self.param_groups[:number], self.param_groups[number:]
        for rule, own in zip(self.rules, groups, strict=True):
            rule.param_groups, rule.state = own, self.state

    def step(self, closure: Any = None) -> None:
        """Update all parameters. There is no ``closure`` that would compute gradients anew."""
        for rule in self.rules:
            rule.step()


def with_clipping(optimizer: torch.optim.Optimizer, clip: CfgNode) -> torch.optim.Optimizer:
    """Have ``optimizer`` clip gradients as ``clip`` (SOLVER.CLIP_GRADIENTS) says, and return it.

    The clipping runs as a hook before each step. The hook stores the gradients' norm before
    clipping in the optimizer's attribute ``grad_norm``, a tensor on their device. The optimizer
    keeps its own kernels and values when it loads the state of another run.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # a schedule that is built after a resume reads it
    optimizer.register_load_state_dict_pre_hook(_fitted)
    if clip.ENABLED:
        groups = getattr(optimizer, "clipped_groups", optimizer.param_groups)
        trained = [p for group in groups for p in group["params"]]

        def clip_gradients(*_) -> None:
            # AMP leaves unscaling to a fused kernel, unless the trainer has called ``unscale_``.
            scale = getattr(optimizer, "grad_scale", None)
            scale = 1.0 if scale is None else scale
            norm = nn.utils.clip_grad_norm_(
                trained, clip.CLIP_VALUE * scale, norm_type=clip.NORM_TYPE
            )
            optimizer.grad_norm = norm / scale  # type: ignore[attr-defined]

        optimizer.register_step_pre_hook(clip_gradients)
    return optimizer


def _fitted(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Return a checkpoint's state with this run's kernels and values.

    The learning rates are those of the checkpoint until the schedule sets them, see
    :func:`set_rates`.

    Raises:
        CheckpointError: the state belongs to another optimizer, or to other parameters.
    """

    def kinds(groups: Sequence[dict]) -> list[tuple]:
        return [("betas" in group, len(group["params"])) for group in groups]

    if kinds(optimizer.param_groups) != kinds(state["param_groups"]):
        raise CheckpointError(
            "the checkpoint's optimizer is not this run's: to resume, keep SOLVER.OPTIMIZER, "
            "MODEL.BACKBONE.FREEZE_AT, and the parts that have a learning rate or weight decay of "
            "their own; MODEL.WEIGHTS without --resume starts anew from the weights"
        )
    groups = [
        {**own, "lr": saved["lr"], "params": saved["params"]}
        for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    return {**state, "param_groups": groups}


def set_rates(optimizer: torch.optim.Optimizer, rates: Iterable[float]) -> None:
    """Set the learning rates of ``optimizer``, one per parameter group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def role_of(path: Sequence[str]) -> str:
    """Return the role that sets a module's rate: "backbone", "sampling", "encoder" or ""."""
    if "backbone" in path and "pyramid" not in path:  # which starts anew, as the neck does
        return "backbone"
    if not _SAMPLING.isdisjoint(path):
        return "sampling"
    return "encoder" if "encoder" in path else ""


def build_lr_multiplier(cfg: CfgNode) -> ParamScheduler:
    """Return the learning rates' factor as a function of the fraction of SOLVER.MAX_ITER done.

    It reads the same keys as Detectron2's ``build_lr_scheduler``.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        schedule = CosineParamScheduler(1, solver.BASE_LR_END / solver.BASE_LR)
    else:
        steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
        if len(steps) < len(solver.STEPS):
            logger.warning(
                "SOLVER.STEPS %s: those after SOLVER.MAX_ITER %d are never reached",
                tuple(solver.STEPS),
                solver.MAX_ITER,
            )
        schedule = MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    start = solver.WARMUP_FACTOR * schedule(0.0)
    if solver.WARMUP_METHOD == "linear":
        end = schedule(0.0 if solver.RESCALE_INTERVAL else length)
        warmup = LinearParamScheduler(start, end)
    else:
        warmup = ConstantParamScheduler(start)
    return CompositeParamScheduler(
        [warmup, schedule],
        interval_scaling=["rescaled", "rescaled" if solver.RESCALE_INTERVAL else "fixed"],
        lengths=[length, 1 - length],
    )


def scale_to_workers(cfg: CfgNode, world_size: int) -> CfgNode:
    """Return the config for another number of workers than ``SOLVER.REFERENCE_WORLD_SIZE``.

    Batch and learning rate grow in proportion, and lengths in iterations shrink, to one iteration
    at least, as in Detectron2's ``DefaultTrainer.auto_scale_workers``. A reference of 0 scales
    nothing.

    Raises:
        ConfigError: the scaled batch or schedule cannot work.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, world_size):
        return cfg
    scale = world_size / reference
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    solver.BASE_LR *= scale
    solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)

    def scaled(iterations: int) -> int:
        return max(1, round(iterations / scale)) if iterations else 0

    for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        solver[key] = scaled(solver[key])
    solver.STEPS = tuple(map(scaled, solver.STEPS))
    cfg.TEST.EVAL_PERIOD = scaled(cfg.TEST.EVAL_PERIOD)
    solver.REFERENCE_WORLD_SIZE = world_size
    cfg.freeze()
    try:
        validate(cfg)
    except ConfigError as error:
        raise ConfigError(
            f"scaled from SOLVER.REFERENCE_WORLD_SIZE {reference} to {world_size} workers: {error}"
        ) from None
    logger.info("config scaled from %d to %d workers", reference, world_size)
    return cfg
