"""Train on PyPI packages alone, with Detectron2's keys, files and counting."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from operator import attrgetter

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader

from ..checkpoints import SafeCheckpointing
from ..checkpoints.checkpointer import FINAL
from ..config import pretrains, validate
from ..data import loader
from ..data.classes import check_test_classes
from ..data.coco import CocoDataset, load_training_datasets, usable_records
from ..data.grey import count_grey_bits
from ..data.mapper import DetrMapper
from ..data.patches import PatchMapper, image_records
from ..distributed import rank, shared_seed
from ..engine.iterations import Iterations
from ..engine.parallel import data_parallel
from ..modeling.detector import build_detector
from ..structures import Sample
from ..training import Targets, build_criterion
from ..training.solver import build_lr_multiplier, build_optimizer, set_rates
from ..visualization.detections import NUM_SHOWN, training_picture
from .evaluator import Evaluator
from .metrics import Metrics

logger = logging.getLogger(__name__)


class Trainer:
    """Trains the detector of a configuration.

    Checkpoints have the layout of Detectron2's trainer, so that either host continues the other's
    run.
    """

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ConfigError: a config that ``train_net.py`` refuses.
        """
        validate(cfg)
        self.cfg = cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
        cfg.INPUT.GREY_BITS = cfg.INPUT.GREY_BITS or count_grey_bits(cfg)[0]
        cfg.freeze()
        self.max_iter = cfg.SOLVER.MAX_ITER
        seed = shared_seed(cfg.SEED)
        torch.manual_seed(seed)
        self.detector = build_detector(cfg).to(cfg.MODEL.DEVICE).train()
        self.criterion = build_criterion(cfg)
        self.optimizer = build_optimizer(cfg, self.detector)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.rate_factor = build_lr_multiplier(cfg)
        datasets = [] if pretrains(cfg) else load_training_datasets(cfg)
        self.detector.class_names = datasets[0].class_names if datasets else ()
        self._datasets = datasets  # until training starts
        self.checkpointer = SafeCheckpointing(
            self.detector,
            cfg.OUTPUT_DIR,
            save_to_disk=rank() == 0,
            freeze_random=cfg.MODEL.BACKBONE.FREEZE_RANDOM,
        )
        self.iterations = Iterations(
            cfg, self.detector, self.optimizer, self.checkpointer, seed=seed
        )
        self.checkpointer.add_checkpointable("trainer", self.iterations)
        unused = not set(self.detector.backbone.strides) <= set(self.detector.in_features)
        self.model = data_parallel(self.detector, find_unused_parameters=unused)
        self.evaluator = Evaluator(cfg, self.iterations.evaluated)
        for dataset in self.evaluator.datasets if datasets else ():
            check_test_classes(dataset.name, dataset.class_names, datasets[0].class_names)

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        self.iterations.begin()
        self._set_rates()

    def build_mapper(self) -> DetrMapper:
        """Return the mapper of training records; a subclass may change its augmentations."""
        return build_mapper(self.cfg)

    def train(self) -> dict:
        """Train to SOLVER.MAX_ITER.

        Returns:
            the last evaluation, ``{dataset: {"bbox": {"AP": ...}}}``.
        """
        start = self.iterations.done + 1
        batches = build_train_loader(
            self.cfg,
            mapper=self.build_mapper(),
            seed=self.iterations.seed,
            start=start,
            datasets=self._datasets,
        )
        self._datasets = []
        self.iterations.num_images = len(batches.batch_sampler.members)
        metrics = None
        if rank() == 0:
            scalars = self.iterations.scalars
            metrics = Metrics(self.cfg.OUTPUT_DIR, max_iter=self.max_iter, scalars=scalars)
        logger.info("training from iteration %d to %d", start, self.max_iter)
        period = self.cfg.TEST.EVAL_PERIOD
        results: dict = {}
        with self.iterations.stop:
            if start >= self.max_iter:
                self.checkpointer.save_final(self.iterations.done)
            if start >= self.max_iter or (start and period and start % period == 0):
                # The run may have ended in this evaluation: make it again.
                results = self._evaluate(metrics)
            stream = iter(batches)
            for iteration in range(start, self.max_iter):
                self._run_iteration(iteration, stream, metrics)
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
            self.iterations.write_results(results)
        return results

    def _run_iteration(
        self, iteration: int, batches: Iterator[list[Sample]], metrics: Metrics | None
    ) -> None:
        begun = time.perf_counter()
        values = self.iterations.run(iteration, batches, self._losses, attrgetter("image_id"))
        if metrics:
            metrics.add(iteration, {**values, "time": time.perf_counter() - begun})
            if self.cfg.VIS_PERIOD and (iteration + 1) % self.cfg.VIS_PERIOD == 0:
                self._show(self.iterations.batch[:NUM_SHOWN], metrics)
        self._set_rates()

    def _set_rates(self) -> None:
        """Set the learning rates of the next iteration, a function of its number alone."""
        factor = self.rate_factor(min(1.0, (self.iterations.done + 1) / self.max_iter))
        set_rates(self.optimizer, (rate * factor for rate in self.base_rates))

    def _losses(self, batch: list[Sample]) -> dict[str, Tensor]:
        images, sizes = self.evaluator.pad([sample.image for sample in batch])
        targets = Targets.from_images(
            [sample.labels for sample in batch],
            [sample.boxes for sample in batch],
            sizes,
            images.device,
            self.evaluator.stack_patches([sample.patches for sample in batch]),
        )
        return self.criterion(self.model(images, sizes, targets), targets)

    def _show(self, samples: list[Sample], metrics: Metrics) -> None:
        """Draw the model's detections on images that it has just learned from."""
        images = [sample.image for sample in samples]
        picture = training_picture(
            images,
            [sample.boxes for sample in samples],
            self.evaluator.detect(images, [tuple(image.shape[-2:]) for image in images]),
            image_format=self.cfg.INPUT.FORMAT,
            class_names=self.detector.class_names,
        )
        metrics.show(self.iterations.done, "detections", picture)

    def _evaluate(self, metrics: Metrics | None) -> dict:
        results = self.evaluator()
        if metrics is None or not results:
            return results
        iteration = min(self.iterations.done, self.max_iter - 1)
        for name, result in results.items():
            prefix = f"{name}/bbox" if len(self.evaluator.datasets) > 1 else "bbox"
            metrics.write(iteration, {f"{prefix}/{k}": v for k, v in result["bbox"].items()})
        self.iterations.best.offer(next(iter(results.values()))["bbox"]["AP"], iteration)
        return results


def build_mapper(cfg: CfgNode) -> DetrMapper:
    """Return the mapper of training records."""
    mapper = PatchMapper if pretrains(cfg) else DetrMapper
    return mapper.from_config(cfg, is_train=True)


def build_train_loader(
    cfg: CfgNode,
    *,
    seed: int,
    start: int = 0,
    mapper: DetrMapper | None = None,
    datasets: Sequence[CocoDataset] | None = None,
) -> DataLoader:
    """Build an endless loader of ``list[Sample]``, this worker's shares of the global batches.

    Args:
        seed, start: see :func:`~smca.data.loader.build_train_loader`.
        datasets: those of DATASETS.TRAIN; None: they are loaded.
    """
    if pretrains(cfg):
        records = image_records(cfg)
    else:
        if datasets is None:
            datasets = load_training_datasets(cfg)
        records = usable_records(
            [(dataset.name, dataset.records) for dataset in datasets],
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        )
    return loader.build_train_loader(
        dataset=records,
        mapper=mapper or build_mapper(cfg),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        sampler=cfg.DATALOADER.SAMPLER_TRAIN,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
        start=start,
    )
