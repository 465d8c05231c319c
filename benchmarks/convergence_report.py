"""Read the runs of a convergence race, compare their curves, and write the report's files."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from smca.analysis.markdown import markdown_table
from smca.analysis.runs import read_metrics
from smca.evaluation.evaluate import AP_NAMES
from smca.visualization.curves import finish_axes

BASELINE = "detr"
_MAX_BUDGETS = 8


@dataclass(frozen=True)
class Run:
    """The evaluations of one system trained with one seed.

    Attributes:
        evaluations: iterations done -> ``{"AP": percent, ...}``, without undefined values.
    """

    system: str
    seed: int
    evaluations: dict[int, dict[str, float]]


@dataclass(frozen=True)
class Curve:
    """A system's AP over iterations, in percent: mean, lowest and highest of its seeds."""

    iterations: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]

    @property
    def best(self) -> tuple[int, float]:
        """Return the first iteration with the best mean, and that mean."""
        value = max(self.mean)
        return self.iterations[self.mean.index(value)], value


def run_folder(output: Path, system: str, seed: int) -> Path:
    """Return the folder of a run within the race's folder ``output``."""
    return output / system / f"seed{seed}"


def read_run(output: Path, system: str, seed: int, iterations: int) -> Run:
    """Return the run with the evaluations of its ``metrics.json``, or none without that file.

    Args:
        output, system, seed: see :func:`run_folder`.
        iterations: number of iterations in a complete run.
    """
    path = run_folder(output, system, seed) / "metrics.json"
    series = read_metrics(path) if path.exists() else {}
    evaluations: dict[int, dict[str, float]] = {}
    for name in AP_NAMES:
        for iteration, value in zip(*series.get(f"bbox/{name}", ([], [])), strict=True):
            # A host may number its last evaluation as if one more iteration had run.
            evaluations.setdefault(min(iteration + 1, iterations), {})[name] = value
    return Run(system, seed, evaluations)


def read_race(output: Path, systems: Sequence[str], iterations: int) -> list[Run]:
    """Return all evaluated runs of ``systems`` in ``output``, ordered by system and seed."""
    runs = []
    for system in systems:
        seeds = sorted(int(path.name[4:]) for path in (output / system).glob("seed*"))
        runs += [read_run(output, system, seed, iterations) for seed in seeds]
    return [run for run in runs if run.evaluations]


def curves(runs: Sequence[Run]) -> dict[str, Curve]:
    """Return each system's curve over the iterations at which all of its runs were evaluated."""
    result = {}
    for system in dict.fromkeys(run.system for run in runs):
        seeds = [run.evaluations for run in runs if run.system == system]
        common = sorted(set.intersection(*map(set, seeds)))
        values = [[seed[iteration]["AP"] for seed in seeds] for iteration in common]
        if common:
            result[system] = Curve(
                common, *([f(v) for v in values] for f in (statistics.fmean, min, max))
            )
    return result


def iterations_to_reach(curve: Curve, level: float) -> int | None:
    """Return the iterations before mean AP first reached ``level``, or None if it never did."""
    return next(
        (i for i, ap in zip(curve.iterations, curve.mean, strict=True) if ap >= level), None
    )


def budgets(iterations: Sequence[int], most: int = _MAX_BUDGETS) -> list[int]:
    """Return at most ``most`` of ``iterations``, evenly spaced, with the last one."""
    step = -(-len(iterations) // most)
    return list(iterations)[::-1][::step][::-1]


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write one row for each evaluation."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["system", "seed", "iteration", *AP_NAMES])
        for run in runs:
            for iteration, values in sorted(run.evaluations.items()):
                numbers = [f"{values[name]:.4f}" if name in values else "" for name in AP_NAMES]
                writer.writerow([run.system, run.seed, iteration, *numbers])


def markdown(runs: Sequence[Run], titles: Mapping[str, str]) -> str:
    """Return two tables: AP at each budget, and how soon each system reaches DETR's best AP.

    Args:
        runs: the result of :func:`read_race`.
        titles: the title of each system.
    """
    drawn = curves(runs)
    if not drawn:
        return "Nothing has been evaluated yet.\n"
    columns = budgets(sorted({i for curve in drawn.values() for i in curve.iterations}))
    several = {s for s in drawn if sum(run.system == s for run in runs) > 1}
    head = ["AP after iterations", *(f"{i:,}" for i in columns)]
    rows = []
    for system, curve in drawn.items():
        cells = dict(
            zip(
                curve.iterations,
                (
                    f"{mean:.1f} ({low:.1f}-{high:.1f})" if system in several else f"{mean:.1f}"
                    for mean, low, high in zip(curve.mean, curve.low, curve.high, strict=True)
                ),
                strict=True,
            )
        )
        rows.append([titles[system], *(cells.get(i, "") for i in columns)])
    return markdown_table(head, rows) + "\n" + _comparison(runs, drawn, titles)


def _comparison(runs: Sequence[Run], drawn: Mapping[str, Curve], titles: Mapping[str, str]) -> str:
    baseline = drawn.get(BASELINE)
    needed, level = baseline.best if baseline else (None, None)
    reach = f"iterations to DETR's best AP{f' ({level:.1f})' if baseline else ''}"
    head = ["", "seeds", "best AP", "at", "mean AP", reach, "times sooner"]
    rows = []
    for system, curve in drawn.items():
        at, best = curve.best
        reached = iterations_to_reach(curve, level) if baseline else None
        rows.append(
            [
                titles[system],
                str(sum(run.system == system for run in runs)),
                f"{best:.1f}",
                f"{at:,}",
                f"{statistics.fmean(curve.mean):.1f}",
                f"{reached:,}" if reached else "not reached" if baseline else "",
                f"{needed / reached:.1f}" if reached else "",
            ]
        )
    return markdown_table(head, rows)


def plot(runs: Sequence[Run], titles: Mapping[str, str], path: Path) -> None:
    """Draw AP over iterations: for each system the mean of its seeds as a line, and their range."""
    figure = Figure(figsize=(7.5, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(titles, (f"C{i}" for i in range(len(titles))), strict=True))
    for system, curve in curves(runs).items():
        color, baseline = colors[system], system == BASELINE
        axes.plot(
            curve.iterations,
            curve.mean,
            "s--" if baseline else "o-",
            color=color,
            label=titles[system],
            markersize=3.5,
        )
        axes.fill_between(curve.iterations, curve.low, curve.high, color=color, alpha=0.2, lw=0)
        if baseline:
            axes.axhline(curve.best[1], color=color, lw=0.8, ls=":")
    axes.set_ylabel("AP (%)")
    finish_axes(axes, "iteration")
    if axes.lines:
        axes.legend(loc="best")
    figure.savefig(path)
