"""The logs of a run: a progress line, `metrics.json` as Detectron2 writes it, TensorBoard."""

import datetime
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from ..engine.logs import FLUSH_SECONDS, drop_cut_line, is_logged

logger = logging.getLogger(__name__)

# The losses of a line in the log, of those that the model has.
_SHOWN = ("local", "class", "l1", "giou", "centerness", "feature")


class Metrics:
    """Collects numbers of every iteration and writes their means every LOG_PERIOD iterations, with
    the ``scalars`` of such an iteration, see :meth:`~smca.engine.iterations.Iterations.scalars`.
    """

    def __init__(
        self, output_dir: str, *, max_iter: int, scalars: Callable[[int], Mapping[str, float]]
    ):
        self.max_iter = max_iter
        self.scalars = scalars
        path = os.path.join(output_dir, "metrics.json")
        drop_cut_line(path)
        self._json = open(path, "a")  # noqa: SIM115
        self._tensorboard = SummaryWriter(output_dir, flush_secs=FLUSH_SECONDS)
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0

    def add(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add the numbers of one iteration, and write the means when they are due."""
        for name, value in values.items():
            self._sums[name] += value
        self._count += 1
        if not is_logged(iteration, self.max_iter):
            return
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums.clear()
        self._count = 0
        left = (self.max_iter - iteration - 1) * means["time"]
        scalars = self.scalars(iteration)
        self.write(iteration, {**means, **scalars, "eta_seconds": left})
        losses = {name: means.get(f"loss_{name}") for name in _SHOWN}
        logger.info(
            "iter %d/%d  epoch %.2f  loss %.3f (%s)  %.2f it/s  data %.3f s  lr %.2g  eta %s",
            iteration + 1,
            self.max_iter,
            scalars["epoch"],
            means["total_loss"],
            "  ".join(f"{n} {loss:.3f}" for n, loss in losses.items() if loss is not None),
            1 / means["time"],
            means["data_time"],
            scalars["lr"],
            datetime.timedelta(seconds=round(left)),
        )

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write numbers at once, such as those of an evaluation."""
        self._json.write(json.dumps({"iteration": iteration, **values}, sort_keys=True) + "\n")
        self._json.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, iteration)

    def show(self, iteration: int, name: str, picture: np.ndarray) -> None:
        """Write a picture (H, W, 3), RGB uint8, to TensorBoard."""
        self._tensorboard.add_image(name, picture, iteration, dataformats="HWC")

    def close(self) -> None:
        self._json.close()
        self._tensorboard.close()
