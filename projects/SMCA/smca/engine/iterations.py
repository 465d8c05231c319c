"""The iterations of a run in both hosts: fetch a batch, learn from it, stop on a signal."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..checkpoints import BestModel, SafeCheckpointing
from ..distributed import rank, synchronize
from ..errors import NonFiniteLossError
from ..training.solver import role_of
from .ema import MovingAverage
from .report import Clock, Results, run_facts, write_results
from .step import TrainingStep, amp_dtype, seed_step
from .stop import StopRequest

logger = logging.getLogger(__name__)


class Iterations:
    """Runs the iterations of a host's trainer, and keeps what a checkpoint needs to continue them.

    Attributes:
        seed: seeds every iteration, see :func:`~smca.engine.step.seed_step`.
        done: the last iteration that is complete; -1 before the first.
        batch: its batch, a list of samples.
        average: the moving average of the weights, or None.
        evaluated: the model that evaluations use: the average, or else the one that is trained.
        best: keeps the model of the best evaluation.
        clock: adds up the time of the iterations.
        num_images: number of training images; 0 until it is known.
        stop: ends training on a signal; it is entered around the loop.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        checkpointer: SafeCheckpointing,
        *,
        seed: int,
    ):
        """
        Args:
            model: on its device, without a wrapper.
            checkpointer: saves the run; the moving average is added to what it saves.
            seed: not negative; a checkpoint that is loaded replaces it.
        """
        device = next(model.parameters()).device
        self.step = TrainingStep(optimizer, device=device, amp=amp_dtype(cfg, device))
        self.cfg = cfg
        self.model = model
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.checkpointer = checkpointer
        self.seed = seed
        self.done = -1
        self.batch: list[Any] = []
        self.average = None
        self.evaluated = model
        if cfg.MODEL.EMA.ENABLED:
            self.average = MovingAverage(model, decay=cfg.MODEL.EMA.DECAY)
            self.evaluated = self.average.model
            checkpointer.add_checkpointable("ema", self.average)
        self.best = BestModel(checkpointer)
        self.clock = Clock()
        self.num_images = 0
        self.stop = StopRequest()

    def begin(self) -> None:
        """Start from the weights and the state that have been loaded."""
        if self.average:
            self.average.begin()
        logger.info("SEED %d repeats this run", self.seed)

    def run(
        self,
        iteration: int,
        batches: Iterator[list],
        compute_losses: Callable[[list], Mapping[str, Tensor]],
        image_id: Callable[[Any], object],
    ) -> dict[str, float]:
        """Run one iteration with the next of the batches.

        Args:
            iteration: its number, from 0.
            compute_losses: runs the model on a batch and returns weighted losses, which are summed.
            image_id: names a sample's image, for the error message.

        Returns:
            the losses, averaged over the workers, their sum ``total_loss``, and the seconds
            ``data_time`` that fetching took.

        Raises:
            FloatingPointError: a loss is not finite; the state before it has been saved.
            SystemExit: a signal has ended a loader process; the run has been saved.
        """
        begun = time.perf_counter()
        try:
            self.batch = batch = next(batches)
        except RuntimeError:
            # The signal that stops this process may have ended its loader processes.
            if self.stop.signal is None:
                raise
            self.checkpointer.save_to_resume(self.done, self.max_iter)
            raise SystemExit(self.stop.exit_code) from None
        data_time = time.perf_counter() - begun
        seed_step(self.seed, iteration, rank())
        try:
            losses = self.step(
                lambda: compute_losses(batch), [image_id(sample) for sample in batch]
            )
        except NonFiniteLossError as error:
            raise self._save_nonfinite(error, iteration) from error
        if self.average:
            self.average.update(iteration)
        self.done = iteration
        self.clock.seconds += time.perf_counter() - begun
        self.clock.iterations += 1
        return {"total_loss": sum(losses.values()), **losses, "data_time": data_time}

    def _save_nonfinite(self, error: NonFiniteLossError, iteration: int) -> FloatingPointError:
        """Save the state before ``iteration``, and return the error to raise."""
        name = f"model_nonfinite_{iteration:07d}"
        self.checkpointer.save(name, resumable=False, iteration=self.done)
        # The launcher ends all workers when the first one fails.
        synchronize()
        return FloatingPointError(
            f"loss not finite at iteration {iteration}: {error}. The state before this iteration "
            f"is in {os.path.join(self.checkpointer.save_dir, name)}.pth; try a smaller "
            "SOLVER.BASE_LR, or float32"
        )

    def stop_if_asked(self) -> None:
        """Between two iterations, leave with a signal's exit code if all workers agree to stop.

        Raises:
            SystemExit: a checkpoint to resume from has been saved.
        """
        if self.done + 1 < self.max_iter and self.stop.agreed(self.done):
            self.checkpointer.save_to_resume(self.done, self.max_iter)
            # The launcher ends all workers when the first one leaves.
            synchronize()
            raise SystemExit(self.stop.exit_code)

    def scalars(self, iteration: int) -> dict[str, float]:
        """Return what is logged after ``iteration`` beside the losses.

        Returns:
            ``epoch``: images seen divided by training images, if their number is known. ``lr``, and
            ``lr_backbone`` and ``lr_sampling`` if these parts have learning rates of their own.
            ``grad_norm``: before clipping, if gradients are clipped and have not overflowed
            float16; reading it waits for the device.
        """
        scalars: dict[str, float] = {}
        if self.num_images:
            scalars["epoch"] = (iteration + 1) * self.cfg.SOLVER.IMS_PER_BATCH / self.num_images
        optimizer = self.step.optimizer
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        groups: dict[str, dict] = {}
        for name, parameter in self.model.named_parameters():
            if id(parameter) in group_of:
                groups.setdefault(role_of(name.split(".")), group_of[id(parameter)])
        main = groups.get("", optimizer.param_groups[0])
        scalars["lr"] = float(main["lr"])
        for role, group in groups.items():
            if group is not main:
                scalars[f"lr_{role}"] = float(group["lr"])
        norm = float(getattr(optimizer, "grad_norm", math.nan))
        if math.isfinite(norm):
            scalars["grad_norm"] = norm
        return scalars

    def write_results(self, results: Results) -> None:
        """Write `results.md`, with the last evaluation, at the end of the run."""
        facts = run_facts(self.cfg, self.model, num_images=self.num_images, clock=self.clock)
        write_results(self.cfg.OUTPUT_DIR, facts, results, self.best.state_dict())

    def state_dict(self) -> dict:
        """Return the state of training, in the layout of Detectron2's trainer."""
        return {
            "iteration": self.done,
            "seed": self.seed,
            "clock": asdict(self.clock),
            "hooks": {
                "BestCheckpointer": self.best.state_dict(),
                "LRScheduler": {"last_epoch": self.done + 1},
            },
            "_trainer": {
                "iteration": self.done,
                "optimizer": self.step.optimizer.state_dict(),
                "grad_scaler": self.step.scaler.state_dict(),
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Load what :meth:`state_dict` returns, or the state of Detectron2's own trainer."""
        self.done = state["iteration"]
        self.seed = state.get("seed", self.seed)
        self.clock = Clock(**state.get("clock", {}))
        if best := state.get("hooks", {}).get("BestCheckpointer"):
            self.best.load_state_dict(best)
        self.step.optimizer.load_state_dict(state["_trainer"]["optimizer"])
        if scaler := state["_trainer"].get("grad_scaler"):
            self.step.scaler.load_state_dict(scaler)
