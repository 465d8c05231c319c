"""The scalars that both hosts log besides the losses."""

import contextlib
import math
import os

import torch
from torch import nn

from ..training.solver import role_of

# Iterations from one line of `metrics.json` to the next.
LOG_PERIOD = 20
# TensorBoard writes its file at least every so many seconds, however the run ends.
FLUSH_SECONDS = 1


def is_logged(iteration: int, max_iter: int) -> bool:
    """Return whether a line is logged after ``iteration`` of ``max_iter``."""
    return (iteration + 1) % LOG_PERIOD == 0 or iteration + 1 == max_iter


def drop_cut_line(path: str | os.PathLike) -> None:
    """Remove the last line of a file if a full disk or a failing machine has cut it short.

    A run that resumes would append to it.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def step_scalars(
    iteration: int,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    batch_size: int,
    num_images: int,
) -> dict[str, float]:
    """Return the scalars after ``iteration``; reading the gradients' norm waits for the device.

    Args:
        iteration: counted from 0.
        optimizer: see :func:`~smca.training.solver.build_optimizer`.
        model: the model that it trains.
        batch_size: images per iteration, over all workers.
        num_images: number of training images; 0 if it is not known.

    Returns:
        ``epoch``: images seen divided by training images. ``lr``, and ``lr_backbone`` and
        ``lr_sampling`` if these parts have learning rates of their own. ``grad_norm``: before
        clipping, if gradients are clipped and have not overflowed float16.
    """
    scalars: dict[str, float] = {}
    if num_images:
        scalars["epoch"] = (iteration + 1) * batch_size / num_images
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in group_of:
            groups.setdefault(role_of(name.split(".")), group_of[id(parameter)])
    main = groups.get("", optimizer.param_groups[0])
    scalars["lr"] = float(main["lr"])
    for role, group in groups.items():
        if group is not main:
            scalars[f"lr_{role}"] = float(group["lr"])
    norm = float(getattr(optimizer, "grad_norm", math.nan))
    if math.isfinite(norm):
        scalars["grad_norm"] = norm
    return scalars
