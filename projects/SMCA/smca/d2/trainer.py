"""Train on Detectron2: its loop, hooks and writers around the step that both hosts share."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from dataclasses import asdict

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, hooks
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.utils.data import DataLoader

from ..data.loader import build_test_loader, build_train_loader
from ..data.sampler import TrainingBatches
from ..engine.ema import MovingAverage
from ..engine.parallel import data_parallel
from ..engine.report import Clock, write_results
from ..engine.scalars import FLUSH_SECONDS, StepScalars, drop_cut_line
from ..engine.step import save_nonfinite
from ..engine.stop import StopRequest
from ..errors import NonFiniteLossError
from ..evaluation.detections import results_folder
from ..training.solver import build_lr_multiplier, build_optimizer, set_rates
from .checkpointer import SMCACheckpointer
from .dataset_mapper import DetrDatasetMapper
from .datasets import dataset_records, training_records
from .evaluation import CocoEvaluator
from .hooks import (
    BestCheckpointer,
    CheckpointBeforeEvaluation,
    LRScheduler,
    MakeUp,
    PictureHook,
    ShortHistory,
    StopHook,
    Writer,
)
from .meta_arch import SMCA
from .step import StepTrainer

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains SMCA: any number of processes sees the same batches, and ``--resume`` is exact.

    Exact is bit for bit on a CPU. On CUDA the same random numbers are drawn, but sums are rounded
    otherwise from run to run. Checkpoints have the layout of Detectron2's own, with ``seed`` and
    ``clock`` added.

    ``__init__`` does what DefaultTrainer's does, in its order, with these lines replaced:
    ``create_ddp_model`` sets ``device_ids``, which DDP refuses on a CPU, so
    :func:`~smca.engine.parallel.data_parallel` wraps the model; ``AMPTrainer`` needs CUDA, so
    :class:`StepTrainer` runs the iterations; and :class:`SMCACheckpointer` stands for
    ``DetectionCheckpointer``. All else is a ``build_*`` method that a subclass may override.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a config whose datasets are registered.

        Raises:
            ConfigError, DatasetError: a config or data that cannot work, before training starts.
        """
        super(DefaultTrainer, self).__init__()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.seed = cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())
        self.cfg = cfg = cfg.clone()
        cfg.defrost()
        cfg.SEED = self.seed
        cfg.freeze()
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.stop = StopRequest()
        torch.manual_seed(self.seed)
        self.trained = model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        # Data that an evaluation cannot use are refused now, not hours later.
        dataset_records(cfg, cfg.DATASETS.TEST)
        data_loader = self.build_train_loader(cfg)

        average = None
        if cfg.MODEL.EMA.ENABLED:
            average = MovingAverage(model, decay=cfg.MODEL.EMA.DECAY)
        self.evaluated = average.model if average else model
        if comm.get_world_size() > 1:
            device = next(model.parameters()).device
            unused = isinstance(model, SMCA) and model.has_unread_maps
            model = data_parallel(model, device, find_unused_parameters=unused)
        self._trainer = StepTrainer(model, data_loader, optimizer, cfg=cfg, average=average)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        class_names = None
        if cfg.DATASETS.TRAIN:
            class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
        self.checkpointer = SMCACheckpointer(
            model,
            cfg.OUTPUT_DIR,
            freeze_random=cfg.MODEL.BACKBONE.FREEZE_RANDOM,
            class_names=class_names,
            trainer=weakref.proxy(self),
            **({"ema": average} if average else {}),
        )
        self._last_eval_results: dict = {}
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[hooks.HookBase | None]:
        tests = self.cfg.DATASETS.TEST

        def evaluate() -> dict:
            self._last_eval_results = self.test(self.cfg, self.evaluated)
            return self._last_eval_results

        main = comm.is_main_process()
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        metric = f"{tests[0]}/bbox/AP" if len(tests) > 1 else "bbox/AP"
        scalars = StepScalars(
            self.optimizer,
            self.trained,
            batch_size=self.cfg.SOLVER.IMS_PER_BATCH,
            num_images=self.num_images,
        )
        pictures = None
        if main and self.cfg.VIS_PERIOD:
            pictures = PictureHook(
                self._trainer,
                self.evaluated,
                period=self.cfg.VIS_PERIOD,
                image_format=self.cfg.INPUT.FORMAT,
                class_names=self.checkpointer.class_names,
            )
        return [
            hooks.IterationTimer(),
            LRScheduler(scalars),
            pictures,
            StopHook(),
            hooks.PeriodicCheckpointer(self.checkpointer, period) if main else None,
            CheckpointBeforeEvaluation(
                self.checkpointer, period=self.cfg.TEST.EVAL_PERIOD, saved_period=period
            ),
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate),
            BestCheckpointer(self.checkpointer, metric),
            Writer(self.build_writers(), metric) if main else None,
            ShortHistory(),
            MakeUp(),
        ]

    def build_writers(self) -> list[EventWriter]:
        """Return Detectron2's writers, whose files are readable whenever a run ends."""
        folder = self.cfg.OUTPUT_DIR
        lines = os.path.join(folder, "metrics.json")
        drop_cut_line(lines)
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(lines),
            TensorboardXWriter(folder, flush_secs=FLUSH_SECONDS),
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS."""
        super().resume_or_load(resume)
        if self._trainer.average:
            self._trainer.average.begin()
        self._trainer.seed = self.seed
        if batches := self._batches:
            batches.seed, batches.start = self.seed, self.start_iter

    @property
    def _batches(self) -> TrainingBatches | None:
        """The batches of the loader, unless :meth:`build_train_loader` is overridden."""
        batches = getattr(self._trainer.data_loader, "batch_sampler", None)
        return batches if isinstance(batches, TrainingBatches) else None

    @property
    def num_images(self) -> int:
        """Number of training images; 0 if it is not known."""
        return len(self._batches.groups) if self._batches else 0

    def train(self) -> dict:
        """Train to SOLVER.MAX_ITER.

        Returns:
            the last evaluation, as :meth:`test` returns it.

        Raises:
            FloatingPointError: a loss is not finite; the state before it has been saved.
            SystemExit: SIGINT or SIGTERM; a checkpoint to resume from has been saved.
        """
        logger.info("SEED %d repeats this run", self.seed)
        with self.stop:
            super().train()
        results = self._last_eval_results
        if comm.is_main_process():
            tests = self.cfg.DATASETS.TEST
            by_dataset = {tests[0]: results} if len(tests) == 1 else results
            best = [hook.state_dict() for hook in self._hooks if isinstance(hook, BestCheckpointer)]
            write_results(
                self.cfg,
                self.trained,
                # An evaluator of another project may give other results.
                {name: result for name, result in by_dataset.items() if "bbox" in result},
                num_images=self.num_images,
                clock=self._trainer.clock,
                best=best[0] if best else {},
            )
        return results

    def run_step(self) -> None:
        try:
            super().run_step()
        except NonFiniteLossError as error:
            self.iter -= 1  # the last iteration that the saved state has seen
            raise save_nonfinite(error, self.checkpointer, self.iter + 1) from error
        except RuntimeError:
            # The signal that stops this process may have ended its loader processes.
            if self.stop.signal is None or not self._trainer.fetching:
                raise
            self.iter -= 1
            self.save_and_stop()

    def save_and_stop(self) -> None:
        """Save a checkpoint to resume from, and leave with the exit code of the signal."""
        self.checkpointer.save_to_resume(self.iter, self.max_iter)
        if not self._trainer.fetching:
            # All workers are here, and the launcher ends them all when the first one leaves.
            comm.synchronize()
        raise SystemExit(self.stop.exit_code)

    def after_train(self) -> None:
        # Resuming a finished run counts one iteration too many.
        finished = self.iter >= self.max_iter
        self.storage.iter = self.iter = min(self.iter, self.max_iter)
        for hook in self._hooks:
            # A run that failed or was stopped is not evaluated.
            if finished or not isinstance(hook, (hooks.EvalHook, BestCheckpointer)):
                hook.after_train()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "seed": self.seed, "clock": asdict(self._trainer.clock)}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.scheduler.last_epoch <= self.max_iter:
            set_rates(self.optimizer, self.scheduler.get_lr())
        self.seed = state.get("seed", self.seed)
        self._trainer.clock = Clock(**state.get("clock", {}))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        # Detectron2's builder makes the same schedule, but fails if a step is MAX_ITER itself.
        return LRMultiplier(optimizer, build_lr_multiplier(cfg), cfg.SOLVER.MAX_ITER)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, mapper: Callable[[dict], dict] | None = None
    ) -> DataLoader:
        """Return an endless loader of lists of dicts, this worker's shares of the global batches.

        Args:
            mapper: from a dataset's dict to the model's input; None: :class:`DetrDatasetMapper`.

        Raises:
            DatasetError: see :func:`~smca.d2.datasets.training_records`.
            ConfigError: SOLVER.IMS_PER_BATCH is no multiple of the number of workers.
        """
        return build_train_loader(
            dataset=training_records(cfg),
            mapper=mapper or DetrDatasetMapper(cfg, is_train=True),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            seed=max(cfg.SEED, 0),
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Return a loader of this worker's part of a dataset, in order, one image a batch."""
        return build_test_loader(
            dataset=dataset_records(cfg, [dataset_name])[dataset_name],
            mapper=DetrDatasetMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> CocoEvaluator:
        folder = results_folder(cfg, dataset_name)
        return CocoEvaluator(dataset_name, output_dir=folder, by_class=cfg.TEST.PER_CLASS_AP)
