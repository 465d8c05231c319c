"""Hooks that Detectron2 lacks, or with which its runs would not resume exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils.events import EventWriter
from torch import nn

from ..checkpoints import BestModel, SafeCheckpointing
from ..engine.scalars import LOG_PERIOD, StepScalars, is_logged
from ..structures import Detections
from ..visualization.detections import NUM_SHOWN, training_picture
from .step import StepTrainer


class LRScheduler(hooks.LRScheduler):
    """Detectron2's hook, which also logs the scalars of an iteration.

    They are read before the step of the schedule, as the learning rates belong to this iteration.
    """

    def __init__(self, scalars: StepScalars):
        super().__init__()
        self.scalars = scalars

    def after_step(self) -> None:
        trainer = self.trainer
        values = {}
        if is_logged(trainer.iter, trainer.max_iter):
            values = self.scalars(trainer.iter)
        super().after_step()
        trainer.storage.put_scalars(**values, smoothing_hint=False)

    def load_state_dict(self, state: dict) -> None:
        # The base rates come from this run's config, which may have changed.
        super().load_state_dict({"last_epoch": state["last_epoch"]})


class PictureHook(HookBase):
    """Shows detections on training images in TensorBoard."""

    def __init__(
        self,
        steps: StepTrainer,
        model: nn.Module,
        *,
        period: int,
        image_format: str,
        class_names: Sequence[str] | None,
    ):
        """
        Args:
            steps: keeps the last batch.
            model: maps dicts with ``image`` to Detectron2's instances; without a wrapper.
            period: iterations from one picture to the next.
            image_format, class_names: see :func:`training_picture`.
        """
        self.steps = steps
        self.model = model
        self.period = period
        self.image_format = image_format
        self.class_names = class_names

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period:
            return
        batch = self.steps.batch[:NUM_SHOWN]
        with inference_context(self.model), torch.no_grad():
            outputs = self.model([{"image": sample["image"]} for sample in batch])
        found = [output["instances"].to("cpu") for output in outputs]
        picture = training_picture(
            [sample["image"] for sample in batch],
            [sample["instances"].gt_boxes.tensor for sample in batch],
            [Detections(i.pred_boxes.tensor, i.scores, i.pred_classes) for i in found],
            image_format=self.image_format,
            class_names=self.class_names,
        )
        self.trainer.storage.put_image("detections", picture.transpose(2, 0, 1))


class StopHook(HookBase):
    """Ends training after an iteration when a signal has asked for it.

    It runs after the schedule's hook, whose step belongs to the iteration, and before the hooks
    that save and evaluate.
    """

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.iter + 1 < trainer.max_iter and trainer.stop.agreed(trainer.iter):
            trainer.save_and_stop()


class CheckpointBeforeEvaluation(HookBase):
    """Saves a checkpoint before each evaluation, so that a failing one loses nothing.

    It runs after the periodic checkpointer and before the hook that evaluates.
    """

    def __init__(self, checkpointer: SafeCheckpointing, *, period: int, saved_period: int):
        """
        Args:
            checkpointer: saves the model.
            period: iterations from one evaluation to the next; 0: only the last one.
            saved_period: iterations from one periodic checkpoint to the next.
        """
        self.checkpointer = checkpointer
        self.period = period
        self.saved_period = saved_period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        evaluated = self.period > 0 and done % self.period == 0 and done < self.trainer.max_iter
        if evaluated and done % self.saved_period:
            self.checkpointer.save_periodic(done - 1)


class Writer(hooks.PeriodicWriter):
    """Detectron2's writer, which also writes every evaluation before the next one replaces it."""

    def __init__(self, writers: Sequence[EventWriter], metric: str):
        """
        Args:
            writers: they write what the event storage holds.
            metric: a scalar that every evaluation puts there.
        """
        super().__init__(writers, period=LOG_PERIOD)
        self.metric = metric
        self._written = -1

    def after_step(self) -> None:
        _, evaluated_at = self.trainer.storage.latest().get(self.metric, (None, -1))
        if evaluated_at > self._written:
            self._written = evaluated_at
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()


class ShortHistory(HookBase):
    """Drops numbers that no writer reads again: Detectron2 keeps a million of each scalar.

    The losses of six layers would take a gigabyte in 300,000 iterations.
    """

    # The printer estimates the remaining time from so many iterations.
    KEPT = 1000

    def after_step(self) -> None:
        if is_logged(self.trainer.iter, self.trainer.max_iter):
            for history in self.trainer.storage.histories().values():
                del history.values()[: -self.KEPT]


class BestCheckpointer(HookBase):
    """Keeps the model of the best evaluation so far as ``model_best.pth``.

    Unlike Detectron2's hook it leaves `last_checkpoint` alone, and remembers the best value after a
    resume. It runs after the hook that evaluates.
    """

    def __init__(self, checkpointer: SafeCheckpointing, metric: str):
        """
        Args:
            checkpointer: saves the model.
            metric: name of a scalar of the event storage, the higher the better.
        """
        self.best = BestModel(checkpointer)
        self.metric = metric

    def after_step(self) -> None:
        storage = self.trainer.storage
        value, evaluated_at = storage.latest().get(self.metric, (None, None))
        if value is not None and evaluated_at == storage.iter:
            self.best.offer(value, min(storage.iter, self.trainer.max_iter - 1))

    def after_train(self) -> None:
        self.after_step()

    def state_dict(self) -> dict:
        return self.best.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.best.load_state_dict(state)


class MakeUp(HookBase):
    """Makes up, at a resume, for an evaluation or a last checkpoint that a killed run did not get.

    It runs after all other hooks.
    """

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter == 0:
            return
        trainer.iter = trainer.storage.iter = trainer.start_iter - 1
        if trainer.start_iter >= trainer.max_iter:
            trainer.checkpointer.save_final(trainer.iter)
            return
        for hook in trainer._hooks:
            if isinstance(hook, (hooks.EvalHook, BestCheckpointer, Writer)):
                hook.after_step()
