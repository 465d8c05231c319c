"""What runs have written, a table of it, and what SMCA's authors published of theirs."""

from __future__ import annotations

import json
import os
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from ..config import flatten, read_yaml
from ..evaluation.scoring import AP_NAMES
from .markdown import markdown_table

_LAST = 2**53  # iterations that a float can count
Series = tuple[list[int], list[float]]


def read_metrics(metrics_json: str | os.PathLike) -> dict[str, Series]:
    """Iterations and finite values of each quantity in a Detectron2-style ``metrics.json``.

    The file holds one JSON object a line; not every line has every quantity. Where a resumed run
    repeats an iteration the later line counts. A last line cut short is passed over.

    Raises:
        ValueError: another line is not a JSON object; names file and line.
    """
    series: dict[str, dict[int, float]] = {}
    lines = Path(metrics_json).read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            iteration = entry.pop("iteration")
            if type(iteration) is not int or not 0 <= iteration < _LAST:
                raise ValueError(f"its iteration is {reprlib.repr(iteration)}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{metrics_json}, line {number} is not a JSON object with an iteration: {error}"
            ) from error
        for key, value in entry.items():
            # Larger integers than floats there are among JSON's.
            if type(value) in (int, float) and abs(value) <= sys.float_info.max:
                series.setdefault(key, {})[iteration] = value
    return {
        key: tuple(map(list, zip(*sorted(values.items()), strict=True)))
        for key, values in series.items()
    }


@dataclass(frozen=True)
class History:
    """What is known of a run.

    Attributes:
        name: what it is called.
        metrics: of :func:`read_metrics`.
        epochs_per_iteration: the batch as a fraction of the training images, for metrics that have
            no ``epoch``; None: not known.
        published: it is its authors' own, not one of this code.
        same_loss: its total loss is the sum that the authors' logs have.
    """

    name: str
    metrics: dict[str, Series]
    epochs_per_iteration: float | None = None
    published: bool = False
    same_loss: bool = False

    @property
    def iterations(self) -> int:
        """Iterations done."""
        last = max((iterations[-1] for iterations, _ in self.metrics.values()), default=-1)
        trained, _ = self.metrics.get("total_loss", ([], []))
        # A host may give the last evaluation the number of the iteration after the last.
        return last if trained and trained[-1] == last - 1 else last + 1

    @property
    def has_epochs(self) -> bool:
        return "epoch" in self.metrics or self.epochs_per_iteration is not None

    def curve(self, key: str, over: str) -> tuple[np.ndarray, np.ndarray]:
        """A quantity, and where it was measured: the iterations or epochs done by then.

        Args:
            key: a key of ``metrics``; without it the curve is empty.
            over: "iteration" or "epoch".
        """
        iterations, values = self.metrics.get(key, ([], []))
        done = np.minimum(np.array(iterations, dtype=float) + 1, self.iterations)
        return self.place(done, over), np.array(values, dtype=float)

    def place(self, done: np.ndarray | float, over: str) -> np.ndarray | float:
        """``done`` iterations as what ``over`` counts."""
        if over == "iteration":
            return done
        if "epoch" in self.metrics:
            iterations, epochs = self.metrics["epoch"]
            return np.interp(done, [0, *(i + 1 for i in iterations)], [0, *epochs])
        return done * (self.epochs_per_iteration or 0.0)

    def data_share(self, over: str) -> tuple[np.ndarray, np.ndarray]:
        """Percentage of the time in which training waits for data."""
        places, waiting = self.curve("data_time", over)
        whole, seconds = self.curve("time", over)
        _, of_waiting, of_whole = np.intersect1d(places, whole, return_indices=True)
        return places[of_waiting], 100 * waiting[of_waiting] / seconds[of_whole]

    def lr_drops(self, over: str) -> np.ndarray:
        """Where a learning rate that had been constant falls by a tenth or more."""
        places, rates = self.curve("lr", over)
        before, last, rate = rates[:-2], rates[1:-1], rates[2:]
        return places[1:-1][np.isclose(before, last) & (rate < 0.9 * last)]


def common_axis(histories: Sequence[History]) -> str:
    """`epoch` where the epochs of all are known, `iteration` where those of none are.

    Raises:
        ValueError: some are known.
    """
    begun = [history for history in histories if history.metrics]
    unknown = [history.name for history in begun if not history.has_epochs]
    if unknown and len(unknown) < len(begun):
        raise ValueError(
            f"the metrics of {', '.join(unknown)} have no epochs, which others have; give the "
            "number of their training images (--images)"
        )
    return "iteration" if unknown else "epoch"


def read_runs(folders: Sequence[str | os.PathLike], images: int | None = None) -> list[History]:
    """What the runs in ``folders`` have written, each named by what tells its path from others.

    Args:
        folders: with a `metrics.json` each, and a `config.yaml`.
        images: training images, for runs whose metrics have no epochs.

    Raises:
        FileNotFoundError: there is no `metrics.json`.
        ValueError: a file that cannot be read as what it should be, or has no batch to count by.
    """
    paths = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [_read_run(Path(path), os.path.relpath(path, root), images) for path in paths]


def _read_run(folder: Path, name: str, images: int | None) -> History:
    metrics = read_metrics(folder / "metrics.json")
    config_file = folder / "config.yaml"
    # Of whatever version of the code.
    config = flatten(read_yaml(config_file)) if config_file.exists() else {}
    # Of several datasets the first counts, as it does for `model_best.pth`.
    tests = config.get("DATASETS.TEST", ())
    first = tests[0] if isinstance(tests, list) and tests else None
    metrics = {key.removeprefix(f"{first}/"): series for key, series in metrics.items()}
    batch = config.get("SOLVER.IMS_PER_BATCH")
    batch = batch if isinstance(batch, int) and batch > 0 else None
    if images and metrics and "epoch" not in metrics and not batch:
        raise ValueError(f"{config_file} does not tell SOLVER.IMS_PER_BATCH")
    epochs = batch / images if images and batch else None
    same_loss = all(config.get(key) == value for key, value in _published()["config"].items())
    return History(name, metrics, epochs_per_iteration=epochs, same_loss=same_loss)


def _published() -> dict:
    file = resources.files(__package__).joinpath("authors_ap_by_epoch.json")
    return json.loads(file.read_text(encoding="utf-8"))


def published_names() -> list[str]:
    """The runs whose AP and loss by epoch SMCA's authors published."""
    return list(_published()["runs"])


def published_runs(names: Sequence[str]) -> list[History]:
    """Those runs of :func:`published_names`, an iteration standing for an epoch."""
    runs = _published()["runs"]
    epochs = {name: list(range(len(runs[name]["AP"]))) for name in names}
    return [
        History(
            f"SMCA's authors, {name} (COCO val2017)",
            {
                "bbox/AP": (epochs[name], runs[name]["AP"]),
                "total_loss": (epochs[name], runs[name]["train_loss"]),
            },
            epochs_per_iteration=1.0,
            published=True,
            same_loss=True,
        )
        for name in names
    ]


def runs_table(histories: Sequence[History]) -> str:
    """Length, last AP, best AP and speed of each run, as Markdown; what is not known is empty.

    Raises:
        ValueError: see :func:`common_axis`.
    """
    over = common_axis(histories)
    head = ["run", "iterations", "epochs", *AP_NAMES, "best AP", f"at {over}", "s an iteration"]
    return markdown_table(head, [_row(history, over) for history in histories])


def in_words(place: float) -> str:
    """Iterations or epochs, these with a decimal where it says something."""
    return f"{place:,.1f}".removesuffix(".0")


def _row(history: History, over: str) -> list[str]:
    places, values = history.curve("bbox/AP", over)
    _, seconds = history.curve("time", over)
    return [
        history.name,
        "" if history.published else f"{history.iterations:,}",
        in_words(history.place(history.iterations, over)) if over == "epoch" else "",
        *(_last(history, key) for key in AP_NAMES),
        f"{values.max():.1f}" if len(values) else "",
        in_words(places[values.argmax()]) if len(values) else "",
        f"{np.median(seconds):.3f}" if len(seconds) else "",
    ]


def _last(history: History, name: str) -> str:
    _, values = history.metrics.get(f"bbox/{name}", ([], []))
    return f"{values[-1]:.1f}" if values else ""
