"""Training curves from a run's metrics."""

import json
import math
import os
from pathlib import Path

from matplotlib.figure import Figure


def read_metrics(metrics_json: str | os.PathLike) -> dict[str, tuple[list[int], list[float]]]:
    """Iterations and finite values of each quantity in a Detectron2-style ``metrics.json``.

    The file holds one JSON object a line; not every line has every quantity. Where a resumed run
    repeats an iteration the later line counts. A last line cut short is passed over.

    Raises:
        ValueError: another line is not a JSON object; names file and line.
    """
    series: dict[str, dict[int, float]] = {}
    lines = Path(metrics_json).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            iteration = int(entry.pop("iteration"))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{metrics_json}, line {number} is not a JSON object with an iteration: {error}"
            ) from error
        for key, value in entry.items():
            if isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(key, {})[iteration] = value
    return {
        key: tuple(map(list, zip(*sorted(values.items()), strict=True)))
        for key, values in series.items()
    }


def plot_ap(metrics_json: str | os.PathLike, out_png: str | os.PathLike) -> None:
    """Draw AP and AP50 (percent) and, beside them, the total loss over iterations.

    Args:
        metrics_json: see :func:`read_metrics`.
        out_png: picture to write.
    """
    metrics = read_metrics(metrics_json)
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, name, color in (("bbox/AP50", "AP50", "tab:orange"), ("bbox/AP", "AP", "tab:blue")):
        if key in metrics:
            iterations, values = metrics[key]
            left.plot(iterations, values, "o-", color=color, label=name, markersize=4)
            left.annotate(
                f"{values[-1]:.1f}",
                (iterations[-1], values[-1]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                color=color,
            )
    if left.lines:
        left.legend(loc="lower right")
        left.margins(y=0.12)
        left.set_ylim(bottom=0)
    else:
        left.text(0.5, 0.5, "not evaluated yet", transform=left.transAxes, ha="center")
    if "total_loss" in metrics:
        right.plot(*metrics["total_loss"], color="tab:red", linewidth=1.2)
        right.set_ylim(bottom=0)
    for axes, title in ((left, "Average precision (%)"), (right, "Total loss")):
        axes.set(title=title, xlabel="iteration")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    Path(out_png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png)
