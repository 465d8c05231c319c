"""The results of the convergence races: evaluations by run, kept as CSV, and curves."""

import csv
import fcntl
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smca.analysis.runs import read_metrics
from smca.evaluation.evaluate import AP_NAMES

ORIGIN = ("commit", "machine", "software")
_COLUMNS = ("system", "seed", "iteration", *AP_NAMES, *ORIGIN)


@dataclass(frozen=True)
class Run:
    """The evaluations of one system trained with one seed.

    Attributes:
        evaluations: iterations done -> ``{"AP": percent, ...}``, without undefined values.
        origin: the values of "commit", "machine" and "software".
    """

    system: str
    seed: int
    evaluations: dict[int, dict[str, float]]
    origin: Mapping[str, str]


@dataclass(frozen=True)
class Costs:
    """What one training iteration of a system costs.

    Attributes:
        multiply_adds: of forward and backward pass, over the batch.
        time: relative to DETR's, measured in turns.
    """

    multiply_adds: float
    time: float


@dataclass(frozen=True)
class Curve:
    """A system's AP over iterations, in percent: mean, lowest and highest of its seeds."""

    iterations: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int

    @property
    def final(self) -> float:
        return self.mean[-1]

    def reaches(self, level: float) -> int | None:
        """Return the iterations before mean AP first reached ``level``, or None if it never did."""
        pairs = zip(self.iterations, self.mean, strict=True)
        return next((iteration for iteration, ap in pairs if ap >= level), None)

    def shown(self, index: int) -> str:
        if self.seeds == 1:
            return f"{self.mean[index]:.1f}"
        return f"{self.mean[index]:.1f} ({self.low[index]:.1f}-{self.high[index]:.1f})"


def read_run(folder: Path, system: str, seed: int, iterations: int) -> Run:
    """Return the run with the evaluations of the ``metrics.json`` in its folder.

    Args:
        iterations: number of iterations in a complete run.
    """
    path = folder / "metrics.json"
    series = read_metrics(path) if path.exists() else {}
    evaluations: dict[int, dict[str, float]] = {}
    for name in AP_NAMES:
        for iteration, value in zip(*series.get(f"bbox/{name}", ([], [])), strict=True):
            # A host may number its last evaluation as if one more iteration had run.
            evaluations.setdefault(min(iteration + 1, iterations), {})[name] = value
    return Run(system, seed, evaluations, {})


def add_results(path: Path, run: Run, origin: Mapping[str, str]) -> None:
    """Add a finished run to the results: a row for each evaluation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another race may finish a run at this moment
        writer = csv.DictWriter(file, _COLUMNS, restval="", lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for iteration, values in sorted(run.evaluations.items()):
            numbers = {name: f"{value:.4f}" for name, value in values.items()}
            about = {"system": run.system, "seed": run.seed, "iteration": iteration}
            writer.writerow(about | numbers | {key: origin[key] for key in ORIGIN})


def read_results(path: Path) -> list[Run]:
    """Return all runs in the results, or none without that file."""
    if not path.exists():
        return []
    runs: dict[tuple[str, int], Run] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = row["system"], int(row["seed"])
            origin = {name: row[name] for name in ORIGIN}
            run = runs.setdefault(key, Run(*key, {}, origin))
            values = {name: float(row[name]) for name in AP_NAMES if row[name]}
            run.evaluations[int(row["iteration"])] = values
    return list(runs.values())


def curves(runs: Sequence[Run], systems: Iterable[str]) -> dict[str, Curve]:
    """Return the curve of each of ``systems`` that has runs, where all of them were evaluated."""
    result = {}
    for system in systems:
        seeds = [run.evaluations for run in runs if run.system == system]
        common = sorted(set.intersection(*map(set, seeds))) if seeds else []
        values = [[seed[iteration]["AP"] for seed in seeds] for iteration in common]
        if common:
            summaries = ([f(v) for v in values] for f in (statistics.fmean, min, max))
            result[system] = Curve(common, *summaries, len(seeds))
    return result


def shares(
    fast: Curve, slow: Curve, costs: tuple[Costs, Costs] | None
) -> tuple[float, float | None, float | None] | None:
    """Return the part of the slower system's iterations, multiply-adds and time after which the
    faster one has the slower one's final AP, or None if it never has.

    Args:
        costs: of the faster and the slower system; None: only the iterations are known.
    """
    reached = fast.reaches(slow.final)
    if reached is None:
        return None
    share = reached / slow.iterations[-1]
    if costs is None:
        return share, None, None
    one, other = costs
    return (
        share,
        share * one.multiply_adds / other.multiply_adds,
        share * one.time / other.time,
    )
