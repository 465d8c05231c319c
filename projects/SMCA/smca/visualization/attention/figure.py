"""Where queries look: co-attention maps over their image, as in the paper's Figure 3.

Points are x, y in pixels of the image.
"""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .panels import GAP, MARGIN, TITLE, Layout, Sheet
from .queries import Detection
from .recording import Look

# What a query detects and where it looks, or a line saying why there is nothing.
Cell = tuple[Detection, Look] | str

_RED = "#ff2030"
_LINE = 0.14  # inches that a line of the legend takes


def gaussian_ellipse(center: np.ndarray, covariance: np.ndarray, points: int = 72) -> np.ndarray:
    """(points, 2): where a Gaussian is exp(-1/2) of its peak, one standard deviation around it.

    Args:
        center: (2,).
        covariance: (2, 2), positive definite.
    """
    angles = np.linspace(0, 2 * np.pi, points)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return center + circle @ np.linalg.cholesky(covariance).T


def draw_co_attention(
    image: np.ndarray,
    rows: Sequence[Sequence[Cell]],
    *,
    row_titles: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
    out_png: str | os.PathLike | None = None,
) -> Figure:
    """A row an object, a column a model: the mean co-attention of the heads, and that of each.

    A square marks the query's centre, which the heads share, a circle the head's own, and a line
    around it the head's Gaussian at one standard deviation; a bar shows how much each scale
    counts. Each map is drawn relative to its own largest value.

    Args:
        image: (h, w, 3) uint8.
        rows: of each, as many cells as there are models.
        row_titles: over the image of each row; by default what the first model detects.
        column_titles: names of the models.
        out_png: where to save the figure, if anywhere.
    """
    shown = [cell for row in rows for cell in row if not isinstance(cell, str)]
    several = len(rows[0]) > 1
    layout = Layout.of(
        aspect=image.shape[1] / image.shape[0],
        num_heads=max((len(look.maps) for _, look in shown), default=1),
        bars=any(look.scale_weights is not None for _, look in shown),
        several=several,
    )
    lefts = [
        MARGIN + layout.panel[0] + GAP + column * (layout.block[0] + GAP)
        for column in range(len(rows[0]) + 1)
    ]
    width = lefts[-1] - GAP + MARGIN
    tops = [
        MARGIN + TITLE * bool(column_titles) + number * (layout.block[1] + GAP)
        for number in range(len(rows) + 1)
    ]
    legend = textwrap.wrap(_legend(shown), width=int(15 * width))
    height = tops[-1] + _LINE * len(legend) + MARGIN / 2
    sheet = Sheet((width, height), image)

    for left, title in zip(lefts, column_titles or (), strict=False):
        sheet.text((left, MARGIN, layout.block[0], TITLE), title, fontsize=11, weight="bold")
    for number, (top, row) in enumerate(zip(tops, rows, strict=False)):
        place = (MARGIN, top + TITLE, *layout.panel)
        _draw_detection(sheet, place, row[0], row_titles[number] if row_titles else None)
        for left, cell in zip(lefts, row, strict=False):
            if isinstance(cell, str):
                place = (left, top + TITLE, *layout.panel)
                sheet.text(place, cell, fontsize=9, color="0.4", wrap=True)
            else:
                _draw_block(sheet, (left, top), layout, *cell, several=several)
    for number, line in enumerate(legend):
        place = (MARGIN, tops[-1] + number * _LINE, width, _LINE)
        sheet.text(place, line, fontsize=7.5, color="0.3", ha="left")
    if out_png is not None:
        Path(out_png).parent.mkdir(parents=True, exist_ok=True)
        sheet.figure.savefig(out_png)
    return sheet.figure


def _legend(shown: Sequence[tuple[Detection, Look]]) -> str:
    looks = [look for _, look in shown]
    parts = []
    if any(look.shared_center is not None for look in looks):
        parts.append("Square: the query's centre.")
    if any(look.head_centers is not None for look in looks):
        parts.append("Circle: the head's own, with its Gaussian at one standard deviation.")
    if any(look.scale_weights is not None for look in looks):
        parts.append("Bar: how much each scale counts; Gaussians are those of the largest share.")
    return " ".join([*parts, "Each map is drawn relative to its own largest value."])


def _draw_detection(
    sheet: Sheet, place: tuple[float, float, float, float], cell: Cell, title: str | None
) -> None:
    """The image with the first model's detection."""
    if isinstance(cell, str):
        sheet.panel(place, "image", title or "", pale=False)
        return
    found, _ = cell
    axes = sheet.panel(place, "image", title or _named(found), pale=False)
    _draw_box(axes, found.box, thickness=1.0)


def _draw_block(
    sheet: Sheet,
    corner: tuple[float, float],
    layout: Layout,
    found: Detection,
    look: Look,
    *,
    several: bool,
) -> None:
    """What one model has to show of one object, at the upper left ``corner``."""

    def moved(place: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        return (corner[0] + place[0], corner[1] + place[1], *place[2:])

    mean = sheet.panel(
        moved(layout.mean), "mean", _named(found) if several else "mean of the heads"
    )
    _draw_heat(mean, look.maps.mean(axis=0), look.steps)
    if several:
        _draw_box(mean, found.box, thickness=0.6)
    _draw_shared_center(mean, look, size=6)
    if look.scale_weights is not None:
        _draw_scales(sheet.axes(moved(layout.bar), "scales"), look, inches=layout.bar[2])
    for head, (weights, place) in enumerate(zip(look.maps, layout.heads, strict=False)):
        title = "each head" if head == 0 and not several else ""
        axes = sheet.panel(moved(place), f"head {head}", title)
        _draw_heat(axes, weights, look.steps)
        _draw_gaussian(axes, look, head)
        _draw_shared_center(axes, look, size=3.5)


def _named(found: Detection) -> str:
    return f"{found.class_name} {found.score:.0%}"


def _draw_box(axes: Axes, box: np.ndarray, thickness: float) -> None:
    x1, y1, x2, y2 = box
    for color, width in (("white", 3.5 * thickness), (_RED, 1.8 * thickness)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=width))


def _draw_heat(axes: Axes, weights: np.ndarray, steps: np.ndarray) -> None:
    # One more row and column, as keys lie on the left and upper edges of what they stand for.
    padded = np.pad(weights, ((0, 1), (0, 1)), mode="edge")
    rows, columns = padded.shape
    relative = padded / max(padded.max(), np.finfo(float).tiny)
    heat = colormaps["viridis"](relative)
    heat[..., 3] = 0.9 * relative**0.7
    x, y = steps
    axes.imshow(
        heat,
        extent=(-0.5 * x, (columns - 0.5) * x, (rows - 0.5) * y, -0.5 * y),
        aspect="auto",
        interpolation="bilinear",
    )


def _draw_shared_center(axes: Axes, look: Look, size: float) -> None:
    if look.shared_center is not None:
        axes.plot(*look.shared_center, "s", color=_RED, ms=size, mec="white", mew=0.8)


def _draw_gaussian(axes: Axes, look: Look, head: int) -> None:
    if look.head_centers is None:
        return
    center = look.head_centers[head]
    axes.plot(*gaussian_ellipse(center, look.covariances[head]).T, color=_RED, lw=1)
    axes.plot(*center, "o", color=_RED, ms=4, mec="white", mew=0.6)


def _draw_scales(axes: Axes, look: Look, inches: float) -> None:
    """A bar divided as the query divides its attention, from the finest scale to the coarsest."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    weights = look.scale_weights
    starts = np.cumsum(weights) - weights
    for index, (start, weight) in enumerate(zip(starts, weights, strict=True)):
        shade = 0.92 - 0.6 * index / max(1, len(weights) - 1)
        axes.add_patch(
            Rectangle((start, 0), weight, 1, facecolor=str(shade), edgecolor="black", lw=0.6)
        )
        text = f"1/{look.strides[index]}: {weight:.0%}"
        if weight * inches < 0.07 * len(text):
            continue
        color = "black" if shade > 0.55 else "white"
        middle = start + weight / 2
        axes.text(middle, 0.46, text, color=color, fontsize=7.5, ha="center", va="center")
