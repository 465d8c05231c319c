"""Train on PyPI packages alone, with Detectron2's keys, files and counting."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from operator import attrgetter

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from ..checkpoints import BestModel, SafeCheckpointing, load
from ..checkpoints.checkpointer import FINAL
from ..data.coco import load_datasets
from ..distributed import rank, shared_seed, world_size
from ..engine.iterations import Iterations
from ..engine.parallel import data_parallel
from ..engine.report import results_tables, write_results
from ..engine.scalars import step_scalars
from ..errors import ConfigError
from ..modeling.detector import build_detector
from ..structures import Sample
from ..training import SetCriterion, Targets
from ..training.solver import (
    build_lr_multiplier,
    build_optimizer,
    set_rates,
)
from ..visualization.detections import NUM_SHOWN, training_picture
from .data import build_train_loader
from .evaluator import Evaluator, model_device
from .metrics import Metrics

logger = logging.getLogger(__name__)


class Trainer:
    """Trains the detector of a configuration.

    Checkpoints have the layout of Detectron2's trainer, so that either host continues the other's
    run.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        self.device = model_device(cfg)
        self.max_iter = cfg.SOLVER.MAX_ITER
        seed = shared_seed(cfg.SEED)
        torch.manual_seed(seed)
        self.detector = build_detector(cfg).to(self.device).train()
        self.criterion = SetCriterion(**SetCriterion.from_config(cfg))
        self.optimizer = build_optimizer(cfg, self.detector)
        multiplier = build_lr_multiplier(cfg)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda iteration: multiplier(iteration / self.max_iter)
        )
        self.checkpointer = SafeCheckpointing(
            self.detector,
            cfg.OUTPUT_DIR,
            save_to_disk=rank() == 0,
            freeze_random=cfg.MODEL.BACKBONE.FREEZE_RANDOM,
            trainer=self,
        )
        self.iterations = Iterations(
            cfg, self.detector, self.optimizer, self.checkpointer, seed=seed
        )
        self.best = BestModel(self.checkpointer)
        self.model = self.detector
        if world_size() > 1:
            self.model = data_parallel(self.detector, self.device)
        self.evaluator = Evaluator(cfg, self.iterations.evaluated)
        # Training and evaluation have the same classes, or are refused.
        datasets = self.evaluator.datasets or load_datasets(cfg, cfg.DATASETS.TRAIN[:1])
        if datasets:
            self.checkpointer.class_names = datasets[0].class_names

    def state_dict(self) -> dict:
        """Return the state of training, in the layout of Detectron2's trainer."""
        schedule = {
            "base_lrs": self.scheduler.base_lrs,
            "last_epoch": self.scheduler.last_epoch,
        }
        hooks = {"LRScheduler": schedule, "BestCheckpointer": self.best.state_dict()}
        return {"hooks": hooks, **self.iterations.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.iterations.load_state_dict(state)
        if best := state.get("hooks", {}).get("BestCheckpointer"):
            self.best.load_state_dict(best)
        # The learning rates come from this run's config, which may have changed.
        self.scheduler.last_epoch = start = self.iterations.done + 1
        if start <= self.max_iter:
            factor = self.scheduler.lr_lambdas[0](start)
            set_rates(self.optimizer, (base * factor for base in self.scheduler.base_lrs))

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        self.iterations.begin()

    def train(self) -> dict:
        """Train to SOLVER.MAX_ITER.

        Returns:
            the last evaluation, ``{dataset: {"bbox": {"AP": ...}}}``.

        Raises:
            FloatingPointError: a loss is not finite; the state before it has been saved.
            SystemExit: SIGINT or SIGTERM; a checkpoint to resume from has been saved.
        """
        start = self.iterations.done + 1
        loader = build_train_loader(
            self.cfg,
            seed=self.iterations.seed,
            start=start,
            like={dataset.name: dataset.class_names for dataset in self.evaluator.datasets},
        )
        num_images = len(loader.dataset)
        metrics = self._metrics(num_images) if rank() == 0 else None
        logger.info("training from iteration %d to %d", start, self.max_iter)
        period = self.cfg.TEST.EVAL_PERIOD
        results: dict = {}
        with self.iterations.stop:
            if start >= self.max_iter:
                self.checkpointer.save_final(self.iterations.done)
            if start >= self.max_iter or (start and period and start % period == 0):
                # The run may have ended in this evaluation: make it again.
                results = self._evaluate(metrics)
            batches = iter(loader)
            for iteration in range(start, self.max_iter):
                self._run_iteration(iteration, batches, metrics)
                self.iterations.stop_if_asked()
                done = iteration + 1
                evaluating = done == self.max_iter or (period and done % period == 0)
                if done == self.max_iter:
                    self.checkpointer.save(FINAL, iteration=iteration)
                elif evaluating or done % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
                    # Also before an evaluation, so that a failing one loses nothing.
                    self.checkpointer.save_periodic(iteration)
                if evaluating:
                    results = self._evaluate(metrics)
        if metrics:
            metrics.close()
            write_results(
                self.cfg,
                self.detector,
                results,
                num_images=num_images,
                clock=self.iterations.clock,
                best=self.best.state_dict(),
            )
        return results

    def _metrics(self, num_images: int) -> Metrics:
        scalars = partial(
            step_scalars,
            optimizer=self.optimizer,
            model=self.detector,
            batch_size=self.cfg.SOLVER.IMS_PER_BATCH,
            num_images=num_images,
        )
        return Metrics(self.cfg.OUTPUT_DIR, max_iter=self.max_iter, scalars=scalars)

    def _run_iteration(
        self, iteration: int, batches: Iterator[list[Sample]], metrics: Metrics | None
    ) -> None:
        begun = time.perf_counter()
        values = self.iterations.run(iteration, batches, self._losses, attrgetter("image_id"))
        if metrics:
            metrics.add(iteration, {**values, "time": time.perf_counter() - begun})
            if self.cfg.VIS_PERIOD and (iteration + 1) % self.cfg.VIS_PERIOD == 0:
                self._show(self.iterations.batch[:NUM_SHOWN], metrics)
        self.scheduler.step()

    def _losses(self, batch: list[Sample]) -> dict[str, Tensor]:
        images, sizes = self.evaluator.pad([sample.image for sample in batch])
        targets = Targets.from_images(
            [sample.labels for sample in batch],
            [sample.boxes for sample in batch],
            sizes,
            self.device,
        )
        return self.criterion(self.model(images, sizes), targets)

    def _show(self, samples: list[Sample], metrics: Metrics) -> None:
        """Draw the model's detections on images that it has just learned from."""
        images = [sample.image for sample in samples]
        picture = training_picture(
            images,
            [sample.boxes for sample in samples],
            self.evaluator.detect(images, [tuple(image.shape[-2:]) for image in images]),
            image_format=self.cfg.INPUT.FORMAT,
            class_names=self.checkpointer.class_names,
        )
        metrics.show(self.iterations.done, "detections", picture)

    def _evaluate(self, metrics: Metrics | None) -> dict:
        results = self.evaluator()
        if metrics is None or not results:
            return results
        iteration = min(self.iterations.done, self.max_iter - 1)
        for name, result in results.items():
            prefix = f"{name}/bbox" if len(results) > 1 else "bbox"
            metrics.write(iteration, {f"{prefix}/{k}": v for k, v in result["bbox"].items()})
        self.best.offer(next(iter(results.values()))["bbox"]["AP"], iteration)
        return results


def evaluate_only(cfg: CfgNode) -> dict:
    """Evaluate MODEL.WEIGHTS.

    Raises:
        ConfigError: DATASETS.TEST is empty.
        CheckpointError: the file does not fit the model.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name the datasets to evaluate on")
    detector = build_detector(cfg).to(model_device(cfg))
    evaluator = Evaluator(cfg, detector)
    load(detector, cfg.MODEL.WEIGHTS, strict=True)
    results = evaluator()
    if results:
        logger.info("results of %s\n\n%s", cfg.MODEL.WEIGHTS, results_tables(results))
    return results
