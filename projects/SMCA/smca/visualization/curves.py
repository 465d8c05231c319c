"""Training curves of one run, or of several runs beside each other."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..analysis.runs import History, common_axis, in_words
from .fonts import make_legible

_SMOOTH = ("Total loss", "Waiting for data (% of the time)", "Norm of the gradients")


def draw_histories(
    histories: Sequence[History], *, ap50: bool = False, smooth: float = 2.0, more: bool = False
) -> Figure:
    """Draw AP and total loss of runs over epochs, or over iterations if no epochs are known.

    Dotted vertical lines show where a run's learning rate falls. The authors' losses are left out
    if the loss of another run is a different sum.

    Args:
        histories: at least one run.
        ap50: whether to draw AP50 too.
        smooth: losses and gradient norms are means over this percentage of a run, as the authors'
            are means over an epoch; 0 draws them as they are.
        more: whether to draw the time spent waiting for data, and the norm of the gradients.

    Raises:
        ValueError: see :func:`~smca.analysis.runs.common_axis`.
    """
    over = common_axis(histories)
    styled = list(zip(histories, _styles(histories), strict=True))
    columns = 1 + (len(histories) > 5)
    size = (11, 4.2 * (1 + more) + 0.2 * math.ceil(len(histories) / columns))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    precision, loss, *below = figure.subplots(1 + more, 2, squeeze=False, sharex=True).flat

    comparable = all(history.same_loss for history in histories)
    for history, style in styled:
        _plot_precision(precision, history, over, ap50=ap50, **style)
        if comparable or not history.published:
            _plot_smooth(loss, *history.curve("total_loss", over), smooth, style)
        if more:
            _plot_smooth(below[0], *history.data_share(over), smooth, style)
            _plot_smooth(below[1], *history.curve("grad_norm", over), smooth, style)

    drops = [(drop, style) for history, style in styled for drop in history.lr_drops(over)]
    remarks = ["dotted: AP50"] * ap50 + ["vertical: learning rate falls"] * bool(drops)
    _title(precision, "AP (%)", *remarks)
    left_out = not comparable and any(history.published for history in histories)
    for axes, title in zip((loss, *below), _SMOOTH, strict=False):
        smoothed = f"mean of the last {smooth:g}% of a run" if smooth and axes.lines else ""
        hint = "the authors' is another sum" if left_out and axes is loss else ""
        _title(axes, title, smoothed, hint)
    for axes in figure.axes:
        finish_axes(axes, over)
        for drop, style in drops:
            axes.axvline(drop, color=style["color"], linestyle=":", linewidth=1, alpha=0.5)
    # "$" would begin a formula.
    handles = [
        Line2D([], [], label=summary(history, over, ap50=ap50).replace("$", r"\$"), **style)
        for history, style in styled
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    return make_legible(figure)


def finish_axes(axes: Axes, xlabel: str) -> None:
    """Give axes the look of all curves: they begin at 0, with a faint grid and without a box."""
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color="grey")
        axes.set_yticks([])
    axes.set_xlabel(xlabel)
    axes.tick_params(labelbottom=True)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def summary(history: History, over: str, *, ap50: bool = False) -> str:
    """A run's name, its last AP (and AP50) and its best AP."""
    places, values = history.curve("bbox/AP", over)
    if not len(values):
        return f"{history.name}: not evaluated"
    best = values.argmax()
    at = f"best {values[best]:.1f} at {over} {in_words(places[best])}"
    words = [f"AP {values[-1]:.1f}", "its best" if best == len(values) - 1 else at]
    if ap50:
        words += [f"AP50 {value:.1f}" for value in history.curve("bbox/AP50", over)[1][-1:]]
    return f"{history.name}: {', '.join(words)}"


def _styles(histories: Sequence[History]) -> list[dict]:
    """A colour for each run; the authors' runs are grey and dashed."""
    ours = sum(not history.published for history in histories)
    many = colormaps["turbo"](np.linspace(0.05, 0.95, ours))
    colors = iter(colormaps["tab10"].colors if ours <= 10 else many)
    greys = iter(np.linspace(0.1, 0.65, max(1, len(histories) - ours)))
    return [
        {"color": str(next(greys)), "linestyle": "--"}
        if history.published
        else {"color": next(colors), "linestyle": "-"}
        for history in histories
    ]


def _plot_precision(
    axes: Axes, history: History, over: str, *, ap50: bool, color: object, linestyle: str
) -> None:
    places, values = history.curve("bbox/AP", over)
    if not len(values):
        return
    axes.plot(places, values, color=color, linestyle=linestyle, marker=".", markersize=5)
    axes.scatter(places[values.argmax()], values.max(), color=[color], marker="*", s=70, zorder=3)
    if ap50:
        axes.plot(*history.curve("bbox/AP50", over), color=color, linestyle=":", linewidth=1)


def _plot_smooth(
    axes: Axes, places: np.ndarray, values: np.ndarray, percent: float, style: dict
) -> None:
    """Draw values as a running mean over a percentage of them."""
    if len(values):
        window = max(1, round(len(values) * percent / 100))
        axes.plot(places, running_mean(values, window), linewidth=1.4, **style)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and the ``window - 1`` before it, as far as there are so many."""
    sums = np.convolve(values, np.ones(window))[: len(values)]
    return sums / np.minimum(np.arange(1, len(values) + 1), window)


def _title(axes: Axes, title: str, *remarks: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.set_title("; ".join(filter(None, remarks)), loc="right", fontsize=8, color="dimgrey")
