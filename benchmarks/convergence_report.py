"""The report of a convergence race: tables, sentences and pictures."""

import bisect
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from convergence_results import ORIGIN, Costs, Curve, Run, curves, shares
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from smca.analysis.markdown import markdown_table
from smca.data.coco import load_coco
from smca.visualization.curves import finish_axes
from smca.visualization.detections import draw_detections, grid

BASELINE = "detr"
# From best to worst, in the paper's Table 2 and Figure 1.
PAPER_ORDER = ("smca-independent", "smca-single", "smca-head-shared", "smca-fixed", "detr")
# The most of a slower system's iterations and time that a faster one should take to its final AP.
_BARS = (
    ("smca-independent", "detr", (0.2, None)),
    ("smca-groups", "smca-independent", (0.6, 0.8)),
    ("smca-groups-short", "smca-independent", (0.6, 0.8)),
    ("plus", "smca-independent", (0.5, 0.6)),
)
_LEVELS = (10, 20, 30)
_MOST_COLUMNS = 6
_COLORS = [c for name in ("tab10", "Dark2", "tab20b") for c in colormaps[name].colors]


def columns(drawn: Mapping[str, Curve]) -> list[int]:
    """Return the iterations to show: halves of the longest run, and the lengths of all runs."""
    longest = max(curve.iterations[-1] for curve in drawn.values())
    everywhere = {i for curve in drawn.values() for i in curve.iterations}
    halves = {longest >> shift for shift in range(_MOST_COLUMNS)} & everywhere
    return sorted(halves | {curve.iterations[-1] for curve in drawn.values()})


def markdown(
    runs: Sequence[Run], titles: Mapping[str, str], costs: Mapping[str, Costs] | None = None
) -> str:
    """Return the tables and sentences of a race.

    Args:
        runs: the result of :func:`read_results`.
        titles: of the systems, in the order of the tables.
        costs: by system; without them nothing is said of multiply-adds and time.
    """
    drawn = curves(runs, titles)
    if not drawn:
        return "Nothing has been finished yet.\n"
    parts = [_precision(drawn, titles), _levels(drawn, titles, costs or {})]
    parts += [_comparison(drawn, titles, costs or {}), _sentences(drawn, titles, costs or {})]
    return "\n".join(part for part in parts if part)


def _precision(drawn: Mapping[str, Curve], titles: Mapping[str, str]) -> str:
    shown = columns(drawn)
    rows = []
    for system, curve in drawn.items():
        last = curve.iterations[-1]
        evaluations = [bisect.bisect(curve.iterations, i) - 1 for i in shown if i < last]
        cells = [curve.shown(n) if n >= 0 else "" for n in evaluations]
        cells.append(f"**{curve.shown(-1)}**")
        rows.append([titles[system], *cells, *[""] * (len(shown) - len(cells))])
    return markdown_table(["AP after iterations", *(f"{i:,}" for i in shown)], rows)


def _levels(
    drawn: Mapping[str, Curve], titles: Mapping[str, str], costs: Mapping[str, Costs]
) -> str:
    head = ["", "seeds", *(f"iterations to AP {level}" for level in _LEVELS)]
    if costs:
        head += [f"T multiply-adds to AP {level}" for level in _LEVELS]
        head += ["G multiply-adds of an iteration", "its time, of DETR's"]
    rows = []
    for system, curve in drawn.items():
        reached = [curve.reaches(level) for level in _LEVELS]
        row = [titles[system], str(curve.seeds), *(f"{i:,}" if i else "-" for i in reached)]
        if system in costs:
            cost = costs[system]
            row += [f"{i * cost.multiply_adds / 1e12:.1f}" if i else "-" for i in reached]
            row += [f"{cost.multiply_adds / 1e9:.2f}", f"{cost.time:.2f}"]
        rows.append(row + [""] * (len(head) - len(row)))
    return markdown_table(head, rows)


def _between(
    drawn: Mapping[str, Curve], costs: Mapping[str, Costs], fast: str, slow: str
) -> tuple[float, float | None, float | None] | None:
    both = (costs[fast], costs[slow]) if fast in costs and slow in costs else None
    return shares(drawn[fast], drawn[slow], both)


def _comparison(
    drawn: Mapping[str, Curve], titles: Mapping[str, str], costs: Mapping[str, Costs]
) -> str:
    slower = sorted(drawn, key=lambda system: drawn[system].final)
    head = ["to the final AP of", "AP", "iterations", *(titles[system] for system in drawn)]
    rows = []
    for slow in slower:
        row = [titles[slow], f"{drawn[slow].final:.1f}", f"{drawn[slow].iterations[-1]:,}"]
        for fast in drawn:
            found = None if fast == slow else _between(drawn, costs, fast, slow)
            row.append(" / ".join(f"{part:.2f}" for part in found[:2] if part) if found else "")
        rows.append(row)
    return markdown_table(head, rows)


def _sentences(
    drawn: Mapping[str, Curve], titles: Mapping[str, str], costs: Mapping[str, Costs]
) -> str:
    """Say whether the paper's order and factor of ten, and the project's bars, hold here."""
    lines = []
    racing = [system for system in PAPER_ORDER if system in drawn]
    if len(racing) == len(PAPER_ORDER):
        order = sorted(racing, key=lambda system: -drawn[system].final)
        verdict = "as in the paper" if order == racing else "not the paper's order"
        found = ", ".join(f"{titles[s]} {drawn[s].final:.1f}" for s in order)
        lines.append(f"Order by final AP: {found}: {verdict}.")
    for fast, slow, limits in _BARS:
        if fast not in drawn or slow not in drawn:
            continue
        names = f"{titles[fast]} has the final AP of {titles[slow]} ({drawn[slow].final:.1f})"
        found = _between(drawn, costs, fast, slow)
        if found is None:
            lines.append(f"{names} never.")
            continue
        words = [f"after {drawn[fast].reaches(drawn[slow].final):,} iterations"]
        measured = (("iterations", found[0], limits[0]), ("time", found[2], limits[1]))
        for quantity, share, limit in measured:
            if share is None:  # not measured
                continue
            bar = f" (bar {limit}: {'met' if share <= limit else 'missed'})" if limit else ""
            words.append(f"{share:.2f} of its {quantity}{bar}")
        if slow == BASELINE:
            words.append(f"{1 / found[0]:.0f} times fewer; the paper says ten times")
        lines.append(f"{names} {', '.join(words)}.")
    return "".join(f"- {line}\n" for line in lines)


def origins(runs: Sequence[Run]) -> str:
    """Return commits, machines and software of the runs as a Markdown list."""
    lines = []
    for key in ORIGIN:
        values = dict.fromkeys(run.origin[key] for run in runs)
        lines.append(f"- {key}: {'; '.join(values)}\n")
    return "".join(lines) if runs else ""


def plot(
    races: Mapping[str, Sequence[Run]],
    titles: Mapping[str, str],
    path: Path,
    *,
    arrows: bool = False,
) -> None:
    """Draw AP over iterations of each race: the mean of a system's seeds, and their range.

    Args:
        races: runs by the race's title.
        titles: of the systems to draw.
        arrows: whether to show how much sooner a system has the final AP of a slower one.
    """
    figure = Figure(figsize=(1 + 6.3 * len(races), 4.6), dpi=120, layout="constrained")
    colors = dict(zip(titles, cycle(_COLORS), strict=False))
    shown: dict[str, object] = {}
    for axes, (title, runs) in zip(
        figure.subplots(1, len(races), squeeze=False).flat, races.items(), strict=True
    ):
        drawn = curves(runs, titles)
        shown |= _plot_race(axes, drawn, titles, colors)
        axes.set_title(title, loc="left", fontweight="bold")
        for fast, slow, _ in _BARS:
            if arrows and fast in drawn and slow in drawn:
                _plot_arrow(axes, drawn[fast], drawn[slow], colors[slow])
    if shown:
        columns = 2 * len(races)  # in which the longest titles fit
        figure.set_figheight(4.6 + 0.2 * max(0.0, len(shown) / columns - 3))
        figure.legend(
            shown.values(),
            shown,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=9,
        )
    figure.savefig(path)


def draw_examples(data: Path, path: Path, *, number: int = 4) -> None:
    """Draw the first validation images of a race's data with their boxes."""
    dataset = load_coco(path.stem, str(data / "annotations/val.json"), str(data / "val"))
    pictures = []
    for record in dataset.records[:number]:
        objects = record["annotations"]
        boxes = np.array([thing["bbox"] for thing in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        with Image.open(record["file_name"]) as image:
            labels = [thing["category_id"] for thing in objects]
            pictures.append(draw_detections(image, boxes, labels, class_names=dataset.class_names))
    grid(pictures).save(path, quality=85)


def _plot_race(
    axes: Axes,
    drawn: Mapping[str, Curve],
    titles: Mapping[str, str],
    colors: Mapping[str, object],
) -> dict[str, object]:
    shown = {}
    for system, curve in drawn.items():
        color = colors[system]
        style = "--" if "detr" in system else "-"
        (shown[titles[system]],) = axes.plot(
            curve.iterations, curve.mean, style, color=color, marker="o", markersize=2.5
        )
        axes.fill_between(curve.iterations, curve.low, curve.high, color=color, alpha=0.2, lw=0)
    axes.set_ylabel("AP (%)")
    finish_axes(axes, "iteration")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return shown


def _plot_arrow(axes: Axes, fast: Curve, slow: Curve, color: object) -> None:
    """Draw an arrow from the end of the slower system's curve to where the faster is as good."""
    reached, end, level = fast.reaches(slow.final), slow.iterations[-1], slow.final
    if reached is None or reached >= end:
        return
    style = {"arrowstyle": "->", "color": color, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (reached, level), (end, level), arrowprops=style)
    axes.annotate(
        f"{end / reached:.1f} times fewer",
        ((reached + end) / 2, level),
        (0, 4),
        textcoords="offset points",
        ha="center",
        color=color,
        fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5},
    )
