"""Metrics that runs have written."""

import json
import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Series = tuple[list[int], list[float]]


def read_metrics(metrics_json: str | os.PathLike) -> dict[str, Series]:
    """The iterations and finite values of each quantity in a Detectron2-style ``metrics.json``.

    The file holds one JSON object per line, and not every line has every quantity. If a resumed run
    repeats an iteration, the later line counts. A last line that is cut short is passed over.

    Raises:
        ValueError: another line is not a JSON object with an iteration.
    """
    series: dict[str, dict[int, float]] = {}
    lines = Path(metrics_json).read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            iteration = operator.index(entry.pop("iteration"))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{metrics_json}, line {number} is not a JSON object with an iteration: {error}"
            ) from error
        for key, value in entry.items():
            if type(value) in (int, float) and math.isfinite(value):
                series.setdefault(key, {})[iteration] = value
    return {
        key: tuple(map(list, zip(*sorted(values.items()), strict=True)))
        for key, values in series.items()
    }


@dataclass(frozen=True)
class History:
    """The metrics of a run.

    Attributes:
        name: name of the run.
        metrics: the result of :func:`read_metrics`.
        epochs_per_iteration: the batch as a fraction of the training images, for metrics without
            ``epoch``; None if it is not known.
        published: whether SMCA's authors published the run.
        same_loss: whether its total loss is the same sum as in the authors' logs.
    """

    name: str
    metrics: dict[str, Series]
    epochs_per_iteration: float | None = None
    published: bool = False
    same_loss: bool = False

    @property
    def iterations(self) -> int:
        """The number of iterations done."""
        last = max((iterations[-1] for iterations, _ in self.metrics.values()), default=-1)
        trained, _ = self.metrics.get("total_loss", ([], []))
        # A host may give the last evaluation the number of the iteration after the last.
        return last if trained and trained[-1] == last - 1 else last + 1

    @property
    def has_epochs(self) -> bool:
        return "epoch" in self.metrics or self.epochs_per_iteration is not None

    def curve(self, key: str, over: str) -> tuple[np.ndarray, np.ndarray]:
        """The places and values of a quantity; places are iterations or epochs done.

        Args:
            key: a key of ``metrics``. The curve is empty if the metrics do not have it.
            over: "iteration" or "epoch".
        """
        iterations, values = self.metrics.get(key, ([], []))
        done = np.minimum(np.array(iterations, dtype=float) + 1, self.iterations)
        return self.place(done, over), np.array(values, dtype=float)

    def place(self, done: np.ndarray | float, over: str) -> np.ndarray | float:
        """``done`` iterations, as iterations or epochs."""
        if over == "iteration":
            return done
        if "epoch" in self.metrics:
            iterations, epochs = self.metrics["epoch"]
            return np.interp(done, [0, *(i + 1 for i in iterations)], [0, *epochs])
        return done * (self.epochs_per_iteration or 0.0)

    def data_share(self, over: str) -> tuple[np.ndarray, np.ndarray]:
        """The places and percentages of the time in which training waits for data."""
        places, waiting = self.curve("data_time", over)
        whole, seconds = self.curve("time", over)
        common, first, second = np.intersect1d(places, whole, return_indices=True)
        return common, 100 * waiting[first] / seconds[second]

    def lr_drops(self, over: str) -> np.ndarray:
        """The places at which a constant learning rate falls by a tenth or more."""
        places, rates = self.curve("lr", over)
        before, last, rate = rates[:-2], rates[1:-1], rates[2:]
        return places[1:-1][np.isclose(before, last) & (rate < 0.9 * last)]


def common_axis(histories: Sequence[History]) -> str:
    """ "epoch" if the epochs of all runs are known, "iteration" if those of none are.

    Raises:
        ValueError: only some are known.
    """
    begun = [history for history in histories if history.metrics]
    unknown = [history.name for history in begun if not history.has_epochs]
    if unknown and len(unknown) < len(begun):
        raise ValueError(
            f"the metrics of {', '.join(unknown)} have no epochs, which others have; give the "
            "number of their training images (--images)"
        )
    return "iteration" if unknown else "epoch"


def in_words(place: float) -> str:
    """Iterations or epochs as text, with a decimal unless it is 0."""
    return f"{place:,.1f}".removesuffix(".0")
