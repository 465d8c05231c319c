"""Train on PyPI packages alone, with Detectron2's keys, files and counting."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict

import torch
from fvcore.common.config import CfgNode

from ..checkpoints import BestModel, SafeCheckpointing, load
from ..checkpoints.checkpointer import FINAL
from ..data.coco import load_datasets
from ..distributed import rank, shared_seed, synchronize, world_size
from ..engine.ema import MovingAverage
from ..engine.parallel import data_parallel
from ..engine.report import Clock, results_tables, write_results
from ..engine.scalars import StepScalars
from ..engine.step import TrainingStep, amp_dtype, save_nonfinite, seed_step
from ..engine.stop import StopRequest
from ..errors import ConfigError, NonFiniteLossError
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
        self.seed = shared_seed(cfg.SEED)
        self.iteration = -1
        self.clock = Clock()
        torch.manual_seed(self.seed)
        self.detector = build_detector(cfg).to(self.device).train()
        self.average = None
        if cfg.MODEL.EMA.ENABLED:
            self.average = MovingAverage(self.detector, decay=cfg.MODEL.EMA.DECAY)
        self.model = self.detector
        if world_size() > 1:
            self.model = data_parallel(self.detector, self.device)
        self.criterion = SetCriterion(**SetCriterion.from_config(cfg))
        self.optimizer = build_optimizer(cfg, self.detector)
        multiplier = build_lr_multiplier(cfg)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda iteration: multiplier(iteration / self.max_iter)
        )
        self.step = TrainingStep(
            self.optimizer, device=self.device, amp=amp_dtype(cfg, self.device)
        )
        self.evaluator = Evaluator(cfg, self.average.model if self.average else self.detector)
        # Training and evaluation have the same classes, or are refused.
        datasets = self.evaluator.datasets or load_datasets(cfg, cfg.DATASETS.TRAIN[:1])
        self.checkpointer = SafeCheckpointing(
            self.detector,
            cfg.OUTPUT_DIR,
            save_to_disk=rank() == 0,
            freeze_random=cfg.MODEL.BACKBONE.FREEZE_RANDOM,
            class_names=datasets[0].class_names if datasets else None,
            trainer=self,
            **({"ema": self.average} if self.average else {}),
        )
        self.best = BestModel(self.checkpointer)

    def state_dict(self) -> dict:
        """Return the state of training, in the layout of Detectron2's trainer."""
        return {
            "iteration": self.iteration,
            "seed": self.seed,
            "clock": asdict(self.clock),
            "hooks": {
                "LRScheduler": {
                    "base_lrs": self.scheduler.base_lrs,
                    "last_epoch": self.scheduler.last_epoch,
                },
                "BestCheckpointer": self.best.state_dict(),
            },
            "_trainer": {
                "iteration": self.iteration,
                "optimizer": self.optimizer.state_dict(),
                "grad_scaler": self.step.scaler.state_dict(),
            },
        }

    def load_state_dict(self, state: dict) -> None:
        self.iteration = state["iteration"]
        self.seed = state.get("seed", self.seed)
        self.clock = Clock(**state.get("clock", {}))
        if best := state.get("hooks", {}).get("BestCheckpointer"):
            self.best.load_state_dict(best)
        self.optimizer.load_state_dict(state["_trainer"]["optimizer"])
        # The learning rates come from this run's config, which may have changed.
        self.scheduler.last_epoch = start = self.iteration + 1
        if start <= self.max_iter:
            factor = self.scheduler.lr_lambdas[0](start)
            set_rates(self.optimizer, (base * factor for base in self.scheduler.base_lrs))
        if scaler := state["_trainer"].get("grad_scaler"):
            self.step.scaler.load_state_dict(scaler)

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.average:
            self.average.begin()

    def train(self) -> dict:
        """Train to SOLVER.MAX_ITER.

        Returns:
            the last evaluation, ``{dataset: {"bbox": {"AP": ...}}}``.

        Raises:
            FloatingPointError: a loss is not finite; the state before it has been saved.
            SystemExit: SIGINT or SIGTERM; a checkpoint to resume from has been saved.
        """
        start = self.iteration + 1
        loader = build_train_loader(
            self.cfg,
            seed=self.seed,
            start=start,
            like={dataset.name: dataset.class_names for dataset in self.evaluator.datasets},
        )
        num_images = len(loader.dataset)
        period = self.cfg.TEST.EVAL_PERIOD
        results: dict = {}
        metrics = self._metrics(start, num_images) if rank() == 0 else None
        with StopRequest() as stop:
            if start >= self.max_iter:
                self.checkpointer.save_final(self.iteration)
                self.iteration = self.max_iter - 1
            if start >= self.max_iter or (start and period and start % period == 0):
                # The run may have ended in this evaluation: make it again.
                results = self._evaluate(metrics)
            batches = iter(loader)
            for iteration in range(start, self.max_iter):
                self._run_iteration(iteration, batches, stop, metrics)
                done = iteration + 1
                evaluating = done == self.max_iter or (period and done % period == 0)
                stopping = done < self.max_iter and stop.agreed(iteration)
                if done == self.max_iter:
                    self.checkpointer.save(FINAL, iteration=iteration)
                elif stopping:
                    self.checkpointer.save_to_resume(self.iteration, self.max_iter)
                    # The launcher ends all processes when the first one leaves.
                    synchronize()
                    raise SystemExit(stop.exit_code)
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
                clock=self.clock,
                best=self.best.state_dict(),
            )
        return results

    def _metrics(self, start: int, num_images: int) -> Metrics:
        logger.info("training from iteration %d to %d", start, self.max_iter)
        logger.info("SEED %d repeats this run", self.seed)
        batch_size = self.cfg.SOLVER.IMS_PER_BATCH
        scalars = StepScalars(
            self.optimizer, self.detector, batch_size=batch_size, num_images=num_images
        )
        return Metrics(self.cfg.OUTPUT_DIR, start=start, max_iter=self.max_iter, scalars=scalars)

    def _run_iteration(
        self,
        iteration: int,
        batches: Iterator[list[Sample]],
        stop: StopRequest,
        metrics: Metrics | None,
    ) -> None:
        """Fetch a batch, learn from it, and log it."""
        begun = time.perf_counter()
        try:
            batch = next(batches)
        except RuntimeError:
            # The signal that stops this process may have ended its loader processes.
            if stop.signal is None:
                raise
            self.checkpointer.save_to_resume(self.iteration, self.max_iter)
            raise SystemExit(stop.exit_code) from None
        data_time = time.perf_counter() - begun
        losses = self._run_step(iteration, batch)
        self.iteration = iteration
        seconds = time.perf_counter() - begun
        self.clock.add(seconds)
        if metrics:
            losses |= {"total_loss": sum(losses.values()), "data_time": data_time, "time": seconds}
            metrics.add(iteration, losses)
            if self.cfg.VIS_PERIOD and (iteration + 1) % self.cfg.VIS_PERIOD == 0:
                self._show(batch[:NUM_SHOWN], metrics)
        self.scheduler.step()

    def _run_step(self, iteration: int, batch: list[Sample]) -> dict[str, float]:
        images, sizes = self.evaluator.pad([sample.image for sample in batch])
        targets = Targets.from_images(
            [sample.labels for sample in batch],
            [sample.boxes for sample in batch],
            sizes,
            self.device,
        )
        seed_step(self.seed, iteration, rank())
        try:
            losses = self.step(
                lambda: self.criterion(self.model(images, sizes), targets),
                [sample.image_id for sample in batch],
            )
        except NonFiniteLossError as error:
            raise save_nonfinite(error, self.checkpointer, iteration) from error
        if self.average:
            self.average.update(iteration)
        return losses

    def _show(self, samples: list[Sample], metrics: Metrics) -> None:
        """Draw the model's detections on images that it has just learned from."""
        begun = time.perf_counter()
        images = [sample.image for sample in samples]
        picture = training_picture(
            images,
            [sample.boxes for sample in samples],
            self.evaluator.detect(images, [tuple(image.shape[-2:]) for image in images]),
            image_format=self.cfg.INPUT.FORMAT,
            class_names=self.checkpointer.class_names,
        )
        metrics.show(self.iteration, "detections", picture)
        metrics.pause(time.perf_counter() - begun)

    def _evaluate(self, metrics: Metrics | None) -> dict:
        begun = time.perf_counter()
        results = self.evaluator()
        if metrics is None or not results:
            return results
        for name, result in results.items():
            prefix = f"{name}/bbox" if len(results) > 1 else "bbox"
            metrics.write(self.iteration, {f"{prefix}/{k}": v for k, v in result["bbox"].items()})
        self.best.offer(next(iter(results.values()))["bbox"]["AP"], self.iteration)
        metrics.pause(time.perf_counter() - begun)
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
