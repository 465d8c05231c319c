"""Training and evaluation on PyPI packages alone, with Detectron2's keys, files and counting."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoints import BestModel, SafeCheckpointing
from ..config import ConfigError
from ..data.coco import CocoDataset, load_datasets, results_folder
from ..modeling.detector import build_detector, pad_images, pixel_statistics
from ..modeling.heads import Detections, detect
from ..training import SetCriterion, Targets
from ..training.solver import build_lr_multiplier, build_optimizer, scale_to_workers
from ..training.step import NonFiniteLossError, TrainingStep, seed_step
from ..training.stop import StopRequest
from .data import Sample, build_test_loader, build_train_loader
from .evaluation import evaluate
from .metrics import Metrics

logger = logging.getLogger(__name__)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _synchronize() -> None:
    if dist.is_initialized():
        dist.barrier()


def _device(cfg: CfgNode) -> torch.device:
    if cfg.MODEL.DEVICE == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(cfg.MODEL.DEVICE)


class Evaluator:
    """Runs a detector over the datasets of DATASETS.TEST."""

    def __init__(self, cfg: CfgNode, detector: nn.Module):
        self.cfg = cfg
        self.detector = detector
        self.device = _device(cfg)
        self.mean, self.std = (part.to(self.device) for part in pixel_statistics(cfg))
        self.datasets = load_datasets(cfg, cfg.DATASETS.TEST)

    def __call__(self) -> dict[str, dict[str, float]]:
        """AP of each dataset, ``{dataset: {"bbox": {...}}}``; empty on all but the first worker."""
        training = self.detector.training
        self.detector.eval()
        results = {dataset.name: self._evaluate(dataset) for dataset in self.datasets}
        self.detector.train(training)
        return {name: result for name, result in results.items() if result}

    def _evaluate(self, dataset: CocoDataset) -> dict:
        found = self._detections(dataset)
        if _world_size() > 1:
            gathered = [None] * _world_size() if _rank() == 0 else None
            dist.gather_object(list(found), gathered)
            if _rank() > 0:
                return {}
            found = [detection for worker in gathered for detection in worker]
        return evaluate(found, dataset, results_folder(self.cfg, dataset.name))

    @torch.no_grad()
    def _detections(self, dataset: CocoDataset) -> Iterator[tuple[int, Detections]]:
        smca = self.cfg.MODEL.SMCA
        loader = build_test_loader(self.cfg, dataset, rank=_rank(), world_size=_world_size())
        for batch in loader:
            images, sizes = pad_images([s.image for s in batch], mean=self.mean, std=self.std)
            detections = detect(
                self.detector(images, sizes),
                [(sample.height, sample.width) for sample in batch],
                max_detections=self.cfg.TEST.DETECTIONS_PER_IMAGE,
                softmax=smca.LOSS.CLASSIFICATION == "softmax",
            )
            for sample, found in zip(batch, detections, strict=True):
                yield (
                    sample.image_id,
                    Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()),
                )


class Trainer:
    """Trains the detector of a configuration.

    Checkpoints have the layout that Detectron2's trainer gives them, so that either host can
    continue the other's run.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg = scale_to_workers(cfg, _world_size())
        self.device = _device(cfg)
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.seed = _shared_seed(cfg.SEED)
        self.iteration = -1
        torch.manual_seed(self.seed)
        self.detector = build_detector(cfg).to(self.device).train()
        self.model = self.detector
        if _world_size() > 1:
            self.model = DistributedDataParallel(self.detector)
        self.criterion = SetCriterion(**SetCriterion.from_config(cfg))
        self.optimizer = build_optimizer(cfg, self.detector)
        multiplier = build_lr_multiplier(cfg)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda iteration: multiplier(iteration / self.max_iter)
        )
        self.step = TrainingStep(self.optimizer, device=self.device, amp=cfg.SOLVER.AMP.ENABLED)
        self.mean, self.std = (part.to(self.device) for part in pixel_statistics(cfg))
        self.evaluator = Evaluator(cfg, self.detector)
        self.checkpointer = SafeCheckpointing(
            self.detector, cfg.OUTPUT_DIR, save_to_disk=_rank() == 0, trainer=self
        )
        self.best = BestModel(self.checkpointer)

    def state_dict(self) -> dict:
        """The state of training, in the layout of Detectron2's trainer."""
        return {
            "iteration": self.iteration,
            "seed": self.seed,
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
        if best := state.get("hooks", {}).get("BestCheckpointer"):
            self.best.load_state_dict(best)
        if schedule := state.get("hooks", {}).get("LRScheduler"):
            self.scheduler.base_lrs = schedule["base_lrs"]
        self.scheduler.last_epoch = self.iteration + 1
        self.optimizer.load_state_dict(state["_trainer"]["optimizer"])
        if scaler := state["_trainer"].get("grad_scaler"):
            self.step.scaler.load_state_dict(scaler)

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        self.best.recall(self.iteration + 1)

    def train(self) -> dict:
        """Train to SOLVER.MAX_ITER.

        Returns:
            the last evaluation, ``{dataset: {"bbox": {"AP": ...}}}``.

        Raises:
            FloatingPointError: a loss that is not finite; the state before it has been saved.
            SystemExit: SIGINT or SIGTERM; a checkpoint to resume from has been saved.
        """
        start = self.iteration + 1
        loader = build_train_loader(
            self.cfg,
            rank=_rank(),
            world_size=_world_size(),
            seed=self.seed,
            start=start,
            like={dataset.name: dataset.class_names for dataset in self.evaluator.datasets},
        )
        period = self.cfg.TEST.EVAL_PERIOD
        results: dict = {}
        metrics = None
        if _rank() == 0:
            metrics = Metrics(self.cfg.OUTPUT_DIR, start=start, max_iter=self.max_iter)
            logger.info("training from iteration %d to %d", start, self.max_iter)
        with StopRequest() as stop:
            if start >= self.max_iter:
                # The run had ended, perhaps in its last evaluation.
                self.iteration = self.max_iter - 1
                results = self._evaluate(metrics)
            batches = iter(loader)
            for iteration in range(start, self.max_iter):
                begun = time.perf_counter()
                try:
                    batch = next(batches)
                except RuntimeError:
                    # The signal that stops this process may have ended its loader's.
                    if stop.signal is None:
                        raise
                    self.checkpointer.save_to_resume(self.iteration, self.max_iter)
                    raise SystemExit(stop.exit_code) from None
                data_time = time.perf_counter() - begun
                losses = self._run_step(iteration, batch)
                self.iteration = iteration
                losses |= {"total_loss": sum(losses.values()), "data_time": data_time}
                losses["time"] = time.perf_counter() - begun
                if metrics:
                    metrics.add(iteration, losses, lr=self.optimizer.param_groups[-1]["lr"])
                self.scheduler.step()
                done = iteration + 1
                evaluating = done == self.max_iter or (period and done % period == 0)
                stopping = done < self.max_iter and stop.agreed(iteration)
                if done == self.max_iter:
                    self.checkpointer.save("model_final", iteration=iteration)
                elif stopping:
                    self.checkpointer.save_to_resume(self.iteration, self.max_iter)
                    # The launcher ends all processes when the first one leaves.
                    _synchronize()
                    raise SystemExit(stop.exit_code)
                elif evaluating or done % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
                    # Before an evaluation too: should that fail, nothing is lost.
                    self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
                if evaluating:
                    results = self._evaluate(metrics)
        if metrics:
            metrics.close()
        return results

    def _run_step(self, iteration: int, batch: list[Sample]) -> dict[str, float]:
        images, sizes = pad_images([s.image for s in batch], mean=self.mean, std=self.std)
        targets = Targets.from_images(
            [sample.labels for sample in batch],
            [sample.boxes for sample in batch],
            sizes,
            self.device,
        )
        seed_step(self.seed, iteration, _rank())
        try:
            return self.step(
                lambda: self.criterion(self.model(images, sizes), targets),
                [sample.image_id for sample in batch],
            )
        except NonFiniteLossError as error:
            name = f"model_nonfinite_{iteration:07d}"
            self.checkpointer.save(name, resumable=False, iteration=iteration - 1)
            _synchronize()
            path = os.path.join(self.cfg.OUTPUT_DIR, name + ".pth")
            raise error.explained(iteration, path) from error

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


def _shared_seed(seed: int) -> int:
    """``seed``, or when it is negative one drawn by the first worker for all."""
    if seed >= 0:
        return seed
    drawn = [int.from_bytes(os.urandom(4), "little")]
    if _world_size() > 1:
        dist.broadcast_object_list(drawn)
    return drawn[0]


def evaluate_only(cfg: CfgNode, *, resume: bool) -> dict:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint in OUTPUT_DIR.

    Raises:
        ConfigError: there is nothing to evaluate, or nothing to evaluate on.
        CheckpointError: the file does not fit the model.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name the datasets to evaluate on")
    detector = build_detector(cfg).to(_device(cfg))
    evaluator = Evaluator(cfg, detector)
    checkpointer = SafeCheckpointing(detector, cfg.OUTPUT_DIR, save_to_disk=False)
    checkpointer.load_to_evaluate(cfg.MODEL.WEIGHTS, resume=resume)
    return evaluator()
