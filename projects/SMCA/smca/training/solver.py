"""Optimizer and learning-rate schedule of a configuration, the same in both hosts."""

from __future__ import annotations

import logging

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

logger = logging.getLogger(__name__)

_FUSED = ("cpu", "cuda")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD, with learning rates of their own for some parts and full-model clipping.

    The clipping runs as a hook before each step, after AMP has unscaled the gradients.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module_name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rate = solver.BASE_LR * _rate_multiplier(solver, module_name.split("."))
            is_norm = isinstance(module, _NORMS)
            decay = solver.WEIGHT_DECAY_NORM if is_norm else solver.WEIGHT_DECAY
            groups.setdefault((rate, decay), []).append(parameter)
    described = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    trained = [parameter for group in groups.values() for parameter in group]
    # One pass over each parameter, where there is a kernel for it.
    options = {"lr": solver.BASE_LR, "fused": all(p.device.type in _FUSED for p in trained)}
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(described, momentum=solver.MOMENTUM, **options)
    else:
        optimizer = torch.optim.AdamW(described, **options)
    optimizer.register_load_state_dict_pre_hook(_with_own_kernels)
    if solver.CLIP_GRADIENTS.ENABLED:
        clip = solver.CLIP_GRADIENTS

        def clip_gradients(*_) -> None:
            nn.utils.clip_grad_norm_(trained, clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_gradients)
    return optimizer


def _with_own_kernels(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """A checkpoint's state, with the kernels of this run instead of those it was written by."""
    groups = [{**group, "fused": optimizer.defaults["fused"]} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _rate_multiplier(solver: CfgNode, path: list[str]) -> float:
    """Learning rate of the module at ``path``, as a fraction of SOLVER.BASE_LR."""
    if "backbone" in path:
        return solver.BACKBONE_MULTIPLIER
    if not {"sampling_offsets", "sampling_reference"}.isdisjoint(path):
        return solver.SAMPLING_MULTIPLIER
    return 1.0


def build_lr_multiplier(cfg: CfgNode) -> ParamScheduler:
    """Factor of the learning rates as a function of the fraction of SOLVER.MAX_ITER done.

    The native host's counterpart of Detectron2's ``build_lr_scheduler``, from the same keys.
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
    """The config for another number of workers than ``SOLVER.REFERENCE_WORLD_SIZE``.

    Batch and learning rate grow, lengths in iterations shrink in proportion, as Detectron2's
    ``DefaultTrainer.auto_scale_workers`` does it; a reference of 0 scales nothing.
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
    for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        solver[key] = round(solver[key] / scale)
    solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
    cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
    solver.REFERENCE_WORLD_SIZE = world_size
    cfg.freeze()
    logger.info("config scaled from %d to %d workers", reference, world_size)
    return cfg
