"""The model of the best evaluation so far, beside the checkpoints that training resumes from."""

from __future__ import annotations

import logging
import math
import os

from .files import CheckpointError, read_checkpoint
from .loading import SafeCheckpointing

logger = logging.getLogger(__name__)


class BestModel:
    """Writes ``model_best.pth`` whenever an evaluation is better than all before.

    Attributes:
        best_metric, best_iter: the best value and its iteration; None before the first.
    """

    FILE = "model_best"

    def __init__(self, checkpointer: SafeCheckpointing):
        self.checkpointer = checkpointer
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def offer(self, value: float, iteration: int) -> None:
        """Save the model when ``value``, of ``iteration``, is the highest so far."""
        if self._update(value, iteration):
            logger.info("best AP so far: %.3f", value)
            self.checkpointer.save(self.FILE, resumable=False, iteration=iteration)

    def recall(self, start: int) -> None:
        """Take up the best of a run that resumes at iteration ``start``.

        A run that was killed between an evaluation and its next checkpoint has it in the file only.
        """
        path = os.path.join(self.checkpointer.save_dir, f"{self.FILE}.pth")
        if start == 0 or not os.path.isfile(path):
            return
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; training goes on without it", error)
            return
        saved = content.get("trainer", {}).get("hooks", {}).get("BestCheckpointer", {})
        iteration = saved.get("best_iter")
        if iteration is not None and iteration < start:
            self._update(saved["best_metric"], iteration)

    def _update(self, value: float, iteration: int) -> bool:
        better = math.isfinite(value) and (self.best_metric is None or value > self.best_metric)
        if better:
            self.best_metric, self.best_iter = float(value), int(iteration)
        return better

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
