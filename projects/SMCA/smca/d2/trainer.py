"""Train on Detectron2: its loop, hooks and writers around the step that both hosts share."""

import logging
import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import getattr_static

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from fvcore.common.history_buffer import HistoryBuffer
from torch import nn
from torch.utils.data import DataLoader

from ..config import pretrains, validate
from ..data.classes import num_classes
from ..data.grey import count_grey_bits
from ..data.loader import build_test_loader, build_train_loader
from ..data.sampler import TrainingSampler
from ..distributed import shared_seed
from ..engine.iterations import Iterations
from ..engine.logs import FLUSH_SECONDS, LOG_PERIOD, drop_cut_line
from ..engine.parallel import data_parallel
from ..engine.report import Results
from ..evaluation.detections import results_folder
from ..training.solver import build_lr_multiplier, build_optimizer, set_rates
from .checkpointer import SMCACheckpointer
from .dataset_mapper import DetrDatasetMapper, build_training_mapper
from .datasets import check_datasets, dataset_records, records_to_train_on
from .evaluation import CocoEvaluator
from .hooks import LRScheduler, PictureHook, Writer
from .meta_arch import Detectron2Detector

logger = logging.getLogger(__name__)

# Values of each scalar that are kept, of which the printer estimates the remaining time. Detectron2
# keeps a million: the losses of six layers would take a gigabyte in 300,000 iterations.
KEPT = 1000
# Methods that a subclass may override, and the keys whose values only they limit.
_READ = {
    "build_hooks": ("TEST.PRECISE_BN.ENABLED",),
    "build_lr_scheduler": ("SOLVER.LR_SCHEDULER_NAME", "SOLVER.WARMUP_METHOD"),
    "build_optimizer": ("SOLVER.OPTIMIZER", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"),
    "build_train_loader": (
        *("INPUT.CROP.TYPE", "INPUT.CROP.SIZE", "INPUT.RANDOM_FLIP"),
        *("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"),
    ),
    "test": ("TEST.AUG.ENABLED",),
}


class Trainer(DefaultTrainer):
    """Trains SMCA: any number of processes sees the same batches, and ``--resume`` is exact.

    Exact is bit for bit on a CPU. On CUDA the same random numbers are drawn, but sums are rounded
    otherwise from run to run. Checkpoints have the layout of Detectron2's own, with ``seed`` and
    ``clock`` added.

    ``__init__`` does what DefaultTrainer's does, in its order, with these lines replaced:
    ``create_ddp_model`` sets ``device_ids``, which DDP refuses on a CPU, so
    :func:`~smca.engine.parallel.data_parallel` wraps the model; ``AMPTrainer`` needs CUDA, so
    :class:`~smca.engine.iterations.Iterations` runs the iterations; and :class:`SMCACheckpointer`
    stands for ``DetectionCheckpointer``. All else is a ``build_*`` method that a subclass may
    override.

    The datasets of the config have to be registered. Those that cannot be used are refused before
    training starts, and so is a config that ``train_net.py`` refuses.
    """

    def __init__(self, cfg: CfgNode):
        super(DefaultTrainer, self).__init__()
        for name in ("detectron2", "smca"):  # unless the program that builds it has set them up
            if not logging.getLogger(name).hasHandlers():
                setup_logger(distributed_rank=comm.get_rank(), name=name)
        # A method that a subclass overrides reads its keys as it likes.
        mine = partial(getattr_static, Trainer)
        theirs = [name for name in _READ if getattr_static(type(self), name) is not mine(name)]
        validate(cfg, but=[key for name in theirs for key in _READ[name]])
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()).clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
        cfg.SEED = shared_seed(cfg.SEED)
        cfg.INPUT.GREY_BITS = cfg.INPUT.GREY_BITS or count_grey_bits(cfg)[0]
        cfg.freeze()
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        torch.manual_seed(cfg.SEED)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        model.unread = ()  # here an override may choose any optimizer
        data_loader = self.build_train_loader(cfg)
        # Data that an evaluation cannot use are refused now, not hours later.
        for name in cfg.DATASETS.TEST:
            dataset_records(cfg, name)
        # Nothing names the classes of nameless data, and pre-training has none.
        model.class_names = (not pretrains(cfg) and check_datasets(cfg)) or ()
        self.checkpointer = SMCACheckpointer(
            model,
            cfg.OUTPUT_DIR,
            freeze_random=cfg.MODEL.BACKBONE.FREEZE_RANDOM,
            trainer=weakref.proxy(self),
        )
        self.iterations = Iterations(cfg, model, optimizer, self.checkpointer, seed=cfg.SEED)
        unused = isinstance(model, Detectron2Detector) and model.has_unread_maps
        model = data_parallel(model, find_unused_parameters=unused)
        self._trainer = SimpleTrainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._last_eval_results: dict = {}  # Detectron2's ``train`` reads it
        self._scores: Results = {}
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[hooks.HookBase | None]:
        main = comm.is_main_process()
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        return [
            hooks.IterationTimer(),
            LRScheduler(),
            PictureHook() if main and self.cfg.VIS_PERIOD else None,
            # After the schedule, whose step belongs to the iteration, and before what takes long.
            hooks.CallbackHook(after_step=lambda trainer: trainer.iterations.stop_if_asked()),
            hooks.PeriodicCheckpointer(self.checkpointer, period) if main else None,
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate),
            Writer(self.build_writers(), LOG_PERIOD) if main else None,
        ]

    def _evaluate(self) -> dict:
        done = self.iter + 1
        if self.start_iter < done < self.max_iter and done % self.cfg.SOLVER.CHECKPOINT_PERIOD:
            self.checkpointer.save_periodic(self.iter)  # a failing evaluation loses nothing
        results = self._last_eval_results = self.test(self.cfg, self.iterations.evaluated)
        tests = self.cfg.DATASETS.TEST
        by_dataset = {tests[0]: results} if len(tests) == 1 else results
        # Test sets may have no annotations, and evaluators of other projects give other results.
        self._scores = {
            name: result
            for name, result in by_dataset.items()
            if isinstance(result, Mapping) and isinstance(result.get("bbox"), Mapping)
        }
        if self._scores:
            precision = next(iter(self._scores.values()))["bbox"].get("AP", math.nan)
            self.iterations.best.offer(precision, min(self.iter, self.max_iter - 1))
        return results

    def build_writers(self) -> list[EventWriter]:
        """Return Detectron2's writers, whose files are readable whenever a run ends."""
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
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
        self.iterations.begin()
        # Unless ``build_train_loader`` is overridden.
        batches = getattr(self._trainer.data_loader, "batch_sampler", None)
        if isinstance(batches, TrainingSampler):
            batches.seed, batches.start = self.iterations.seed, self.start_iter
            self.iterations.num_images = len(batches.members)

    def train(self) -> dict:
        """Train to SOLVER.MAX_ITER, and return the last evaluation as :meth:`test` does."""
        with self.iterations.stop:
            super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
        if comm.is_main_process():
            self.iterations.write_results(self._scores)
            expected, found = self.cfg.TEST.EXPECTED_RESULTS, self._last_eval_results or {}
            if any(not isinstance(found.get(task), Mapping) for task, *_ in expected):
                logger.warning("TEST.EXPECTED_RESULTS: the evaluation has none to compare with")
            elif expected:
                verify_results(self.cfg, found)
        return self._last_eval_results

    def before_train(self) -> None:
        self.storage.histories().default_factory = partial(HistoryBuffer, max_length=KEPT)
        super().before_train()
        if self.start_iter == 0:
            return
        # Make up for an evaluation or a last checkpoint that a killed run did not get.
        self.iter = self.storage.iter = self.start_iter - 1
        if self.start_iter >= self.max_iter:
            self.checkpointer.save_final(self.iter)
            return
        for hook in self._hooks:
            if isinstance(hook, (hooks.EvalHook, Writer)):
                hook.after_step()

    def run_step(self) -> None:
        values = self.iterations.run(
            self.iter,
            self._trainer._data_loader_iter,
            self.model,
            lambda image: image.get("image_id", image.get("file_name")),
        )
        self.storage.put_scalars(**values)

    def after_train(self) -> None:
        # Resuming a finished run counts one iteration too many; one that failed is not complete.
        finished = self.iter >= self.max_iter
        self.storage.iter = self.iter = self.max_iter if finished else self.iterations.done
        for hook in self._hooks:
            # A run that failed or was stopped is not evaluated.
            if finished or not isinstance(hook, hooks.EvalHook):
                hook.after_train()

    def state_dict(self) -> dict:
        theirs, ours = super(DefaultTrainer, self).state_dict(), self.iterations.state_dict()
        return {**theirs, **ours, "hooks": theirs.get("hooks", {}) | ours["hooks"]}

    def load_state_dict(self, state: dict) -> None:
        self.iterations.load_state_dict(state)
        ours = self.iterations.state_dict()["hooks"]
        theirs = {k: v for k, v in state.get("hooks", {}).items() if k not in ours}
        super(DefaultTrainer, self).load_state_dict({**state, "hooks": theirs})
        # The base rates come from this run's config, which may have changed.
        self.scheduler.last_epoch = self.iterations.done + 1
        if self.scheduler.last_epoch <= self.max_iter:
            set_rates(self.optimizer, self.scheduler.get_lr())

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict:
        """Evaluate as Detectron2 does; our own evaluators find the model's classes by name."""
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        for evaluator in evaluators:
            if isinstance(evaluator, CocoEvaluator):
                evaluator.known = getattr(model, "class_names", None) or num_classes(cfg)
        return super().test(cfg, model, evaluators)

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
            mapper: from a dataset's dict to the model's input; None: :class:`DetrDatasetMapper`, or
                to pre-train :class:`PatchDatasetMapper`.
        """
        return build_train_loader(
            dataset=records_to_train_on(cfg),
            mapper=mapper or build_training_mapper(cfg),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            sampler=cfg.DATALOADER.SAMPLER_TRAIN,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            seed=max(cfg.SEED, 0),
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Return a loader of this worker's part of a dataset, in order, one image a batch."""
        return build_test_loader(
            dataset=dataset_records(cfg, dataset_name),
            mapper=DetrDatasetMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> CocoEvaluator:
        return CocoEvaluator(
            dataset_name,
            output_dir=results_folder(cfg, dataset_name),
            by_class=cfg.TEST.PER_CLASS_AP,
            max_dets_per_image=cfg.TEST.MAX_DETS_PER_IMAGE,
        )
