"""The scalars that both hosts log besides the losses."""

from __future__ import annotations

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


class StepScalars:
    """Reads the epoch, the learning rates and the gradients' norm when a line is logged."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        batch_size: int,
        num_images: int,
    ):
        """
        Args:
            optimizer: see :func:`~smca.training.solver.build_optimizer`.
            model: the model that it trains.
            batch_size: images per iteration, over all workers.
            num_images: number of training images; 0 if it is not known.
        """
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.num_images = num_images
        group_of = {
            id(parameter): index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }
        self._groups: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            if id(parameter) in group_of:
                self._groups.setdefault(role_of(name.split(".")), group_of[id(parameter)])

    def __call__(self, iteration: int) -> dict[str, float]:
        """Return the scalars after ``iteration``; reading the gradients' norm waits for the device.

        Returns:
            ``epoch``: images seen divided by training images. ``lr``, and ``lr_backbone`` and
            ``lr_sampling`` if these parts have learning rates of their own. ``grad_norm``: before
            clipping, if gradients are clipped and have not overflowed float16.
        """
        scalars: dict[str, float] = {}
        if self.num_images:
            scalars["epoch"] = (iteration + 1) * self.batch_size / self.num_images
        main = self._groups.get("", 0)
        scalars["lr"] = self._rate(main)
        for role, group in self._groups.items():
            if group != main:
                scalars[f"lr_{role}"] = self._rate(group)
        norm = float(getattr(self.optimizer, "grad_norm", math.nan))
        if math.isfinite(norm):
            scalars["grad_norm"] = norm
        return scalars

    def _rate(self, group: int) -> float:
        return float(self.optimizer.param_groups[group]["lr"])
