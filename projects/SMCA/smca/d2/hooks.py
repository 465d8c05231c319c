"""Hooks that Detectron2 lacks, or with which its runs would not resume exactly."""

import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.evaluator import inference_context

from ..engine.logs import is_logged
from ..visualization.detections import NUM_SHOWN, training_picture
from .meta_arch import to_detections


class LRScheduler(hooks.LRScheduler):
    """Detectron2's hook, which also logs the scalars of an iteration.

    They are read before the step of the schedule, as the learning rates belong to this iteration.
    """

    def after_step(self) -> None:
        trainer = self.trainer
        scalars = {}
        if is_logged(trainer.iter, trainer.max_iter):
            scalars = trainer.iterations.scalars(trainer.iter)
        super().after_step()
        trainer.storage.put_scalars(**scalars, smoothing_hint=False)


class PictureHook(HookBase):
    """Shows detections on training images in TensorBoard every VIS_PERIOD iterations."""

    def after_step(self) -> None:
        trainer = self.trainer
        if (trainer.iter + 1) % trainer.cfg.VIS_PERIOD:
            return
        batch = trainer.iterations.batch[:NUM_SHOWN]
        model = trainer.iterations.evaluated
        with inference_context(model), torch.no_grad():
            outputs = model([{"image": sample["image"]} for sample in batch])
        picture = training_picture(
            [sample["image"] for sample in batch],
            [sample["instances"].gt_boxes.tensor for sample in batch],
            to_detections(outputs),
            image_format=trainer.cfg.INPUT.FORMAT,
            class_names=trainer.iterations.model.class_names,
        )
        trainer.storage.put_image("detections", picture.transpose(2, 0, 1))


class Writer(hooks.PeriodicWriter):
    """Detectron2's writer, which also writes every evaluation before the next one replaces it."""

    def after_step(self) -> None:
        period = self.trainer.cfg.TEST.EVAL_PERIOD
        if period and (self.trainer.iter + 1) % period == 0:
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()
