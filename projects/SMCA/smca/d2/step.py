"""Iterations on Detectron2, by the step that both hosts share."""

from __future__ import annotations

import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.utils.data import DataLoader

from ..engine.ema import MovingAverage
from ..engine.report import Clock
from ..engine.step import TrainingStep, amp_dtype, seed_step


class StepTrainer(SimpleTrainer):
    """Runs iterations by :class:`~smca.engine.step.TrainingStep`.

    Attributes:
        seed: seeds every iteration, see :func:`~smca.engine.step.seed_step`.
        batch: the last batch.
        clock: adds up the time of the iterations.
        fetching: an iteration waits for its batch, and has changed nothing yet.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        *,
        cfg: CfgNode,
        average: MovingAverage | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        device = next(model.parameters()).device
        self.step = TrainingStep(optimizer, device=device, amp=amp_dtype(cfg, device))
        self.seed = cfg.SEED
        self.average = average
        self.batch: list[dict] = []
        self.clock = Clock()
        self.fetching = False

    def run_step(self) -> None:
        begun = time.perf_counter()
        self.fetching = True
        self.batch = batch = next(self._data_loader_iter)
        self.fetching = False
        data_time = time.perf_counter() - begun
        seed_step(self.seed, self.iter, comm.get_rank())
        losses = self.step(
            lambda: self.model(batch),
            [image.get("image_id", image.get("file_name")) for image in batch],
        )
        if self.average:
            self.average.update(self.iter)
        self.clock.add(time.perf_counter() - begun)
        get_event_storage().put_scalars(
            total_loss=sum(losses.values()), data_time=data_time, **losses
        )

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.step.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if scaler := state.get("grad_scaler"):
            self.step.scaler.load_state_dict(scaler)
