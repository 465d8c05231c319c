"""The model of the best evaluation so far, beside the checkpoints to resume from."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from .checkpointer import BEST, SafeCheckpointing

logger = logging.getLogger(__name__)


@dataclass
class BestModel:
    """Writes ``model_best.pth`` whenever an evaluation is better than all before.

    The file itself is never read, as it may be another run's. A run that resumes repeats an
    evaluation that the checkpoint does not know of.

    Attributes:
        checkpointer: writes the file.
        best_metric, best_iter: the best value and its iteration; None before the first.
    """

    checkpointer: SafeCheckpointing
    best_metric: float | None = None
    best_iter: int | None = None

    def offer(self, value: float, iteration: int) -> None:
        """Save the model if ``value``, reached at ``iteration``, is the highest so far."""
        if math.isfinite(value) and (self.best_metric is None or value > self.best_metric):
            self.best_metric, self.best_iter = float(value), int(iteration)
            logger.info("best AP so far: %.3f", value)
            self.checkpointer.save(BEST, resumable=False, iteration=iteration)

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
