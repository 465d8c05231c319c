"""Hooks of the trainer that Detectron2 does not have, or not so that a run can resume exactly."""

from __future__ import annotations

import logging
import math
import os

from detectron2.engine import HookBase

from ..checkpoints import SafeCheckpointing, read_checkpoint

logger = logging.getLogger(__name__)


class StopHook(HookBase):
    """Ends training after an iteration when a signal has asked for it.

    It stands after the learning rate's hook, whose step belongs to the iteration, and before those
    that save and evaluate.
    """

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.iter + 1 < trainer.max_iter and trainer.stop.agreed(trainer.iter):
            trainer.save_and_stop()


class BestCheckpointer(HookBase):
    """Keeps the model of the best evaluation so far as ``model_best.pth``.

    Unlike Detectron2's it leaves `last_checkpoint` alone, and knows the best after a resume. It
    stands after the hook that evaluates.
    """

    FILE = "model_best"

    def __init__(self, checkpointer: SafeCheckpointing, metric: str):
        """
        Args:
            checkpointer: saves the model.
            metric: name of a scalar of the event storage, the higher the better.
        """
        self.checkpointer = checkpointer
        self.metric = metric
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def before_train(self) -> None:
        # A run that was killed between an evaluation and the next checkpoint has its best there.
        path = os.path.join(self.checkpointer.save_dir, f"{self.FILE}.pth")
        if self.trainer.start_iter == 0 or not os.path.isfile(path):
            return
        hooks = read_checkpoint(path).get("trainer", {}).get("hooks", {})
        saved = hooks.get(type(self).__qualname__, {})
        iteration = saved.get("best_iter")
        if iteration is not None and iteration < self.trainer.start_iter:
            self._update(saved["best_metric"], iteration)

    def _update(self, value: float, iteration: int) -> bool:
        better = math.isfinite(value) and (self.best_metric is None or value > self.best_metric)
        if better:
            self.best_metric, self.best_iter = float(value), int(iteration)
        return better

    def _check(self) -> None:
        storage = self.trainer.storage
        value, evaluated_at = storage.latest().get(self.metric, (math.nan, None))
        if evaluated_at != storage.iter:
            return
        iteration = min(storage.iter, self.trainer.max_iter - 1)
        if self._update(value, iteration):
            logger.info("best %s so far: %.3f", self.metric, value)
            self.checkpointer.save(self.FILE, resumable=False, iteration=iteration)

    def after_step(self) -> None:
        self._check()

    def after_train(self) -> None:
        self._check()

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
