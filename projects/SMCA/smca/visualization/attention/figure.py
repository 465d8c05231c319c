"""A picture of where queries look: co-attention maps over their image, as in the paper's Figure 3.

Points are x, y in pixels of the image.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .panels import PanelGrid
from .views import AttentionView, Detection, Panel

_RED = "#ff2030"
_MESSAGE = {"fontsize": 9, "color": "white", "ha": "center", "va": "center", "parse_math": False}


def draw_co_attention(
    image: np.ndarray,
    rows: Sequence[Sequence[Panel]],
    *,
    row_titles: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
    out_png: str | os.PathLike | None = None,
) -> Figure:
    """Draw the co-attention of queries: a row per object, a column per model.

    A row begins with the image and the first model's detection. Each model then shows the mean of
    its heads' maps and the map of each head. A legend below explains the marks.

    Args:
        image: (h, w, 3) uint8.
        rows: the panels of each row, one per model.
        row_titles: titles above the image of each row; by default the first model's detections.
        column_titles: names of the models, above their maps.
        out_png: file to save the figure to.
    """
    views = [panel[1] for row in rows for panel in row if not isinstance(panel, str)]
    grid = PanelGrid(
        image,
        num_rows=len(rows),
        num_models=len(rows[0]),
        num_heads=max((len(view.maps) for view in views), default=1),
        has_bars=any(view.scale_weights is not None for view in views),
        legend=_legend(views),
    )
    for number, row in enumerate(rows):
        first = None if isinstance(row[0], str) else row[0][0]
        title = row_titles[number] if row_titles else _caption(first) if first else ""
        axes = grid.panel(number, 0, title)
        if first:
            _draw_box(axes, first.box, thickness=1.0)
        for column, panel in enumerate(row, start=1):
            name = column_titles[column - 1] if column_titles else ""
            if isinstance(panel, str):
                axes = grid.panel(number, column, name)
                text = textwrap.fill(panel, int(12 * grid.width(axes)))
                axes.text(0.5, 0.5, text, **_MESSAGE, transform=axes.transAxes)
            else:
                title = f"{name}: {_caption(panel[0])}" if name else "mean of the heads"
                _draw_model(grid, number, column, title, *panel)
    if out_png is not None:
        Path(out_png).parent.mkdir(parents=True, exist_ok=True)
        grid.figure.savefig(out_png)
    return grid.figure


def gaussian_ellipse(center: np.ndarray, covariance: np.ndarray, points: int = 72) -> np.ndarray:
    """The line one standard deviation around a Gaussian, where it is exp(-1/2) of its peak.

    Args:
        center: (2,).
        covariance: (2, 2), positive definite.
        points: number of points on the line.

    Returns:
        (points, 2).
    """
    angles = np.linspace(0, 2 * np.pi, points)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return center + circle @ np.linalg.cholesky(covariance).T


def _legend(views: Sequence[AttentionView]) -> str:
    parts = ["Large: the mean of the heads; small: each head."]
    if any(view.shared_center is not None for view in views):
        parts.append("Square: the query's centre, which the heads share.")
    if any(view.head_centers is not None for view in views):
        parts.append("Circle: the head's own, with its Gaussian at one standard deviation.")
    if any(view.scale_weights is not None for view in views):
        parts.append("Bar: how much each scale counts; Gaussians are those of the largest share.")
    return " ".join([*parts, "Each map is drawn relative to its own largest value."])


def _caption(found: Detection) -> str:
    return f"{found.class_name} {found.score:.0%}"


def _draw_model(
    grid: PanelGrid, row: int, column: int, title: str, found: Detection, view: AttentionView
) -> None:
    """Draw one model's maps of one object."""
    mean = grid.panel(row, column, title)
    _draw_heat(mean, view.maps.mean(axis=0), view.steps)
    _draw_box(mean, found.box, thickness=0.6)
    _draw_shared_center(mean, view, size=6)
    if view.scale_weights is not None:
        axes = grid.bar(row, column)
        _draw_scales(axes, view, inches=grid.width(axes))
    for head, weights in enumerate(view.maps):
        axes = grid.panel(row, column, head=head)
        _draw_heat(axes, weights, view.steps)
        if view.head_centers is not None:
            center = view.head_centers[head]
            axes.plot(*gaussian_ellipse(center, view.covariances[head]).T, color=_RED, lw=1)
            axes.plot(*center, "o", color=_RED, ms=4, mec="white", mew=0.6)
        _draw_shared_center(axes, view, size=3.5)


def _draw_box(axes: Axes, box: np.ndarray, thickness: float) -> None:
    x1, y1, x2, y2 = box
    for color, width in (("white", 3.5 * thickness), (_RED, 1.8 * thickness)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=width))


def _draw_heat(axes: Axes, weights: np.ndarray, steps: np.ndarray) -> None:
    # One more row and column, because keys lie on the left and upper edges of their cells.
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


def _draw_shared_center(axes: Axes, view: AttentionView, size: float) -> None:
    if view.shared_center is not None:
        axes.plot(*view.shared_center, "s", color=_RED, ms=size, mec="white", mew=0.8)


def _draw_scales(axes: Axes, view: AttentionView, inches: float) -> None:
    """Draw a bar divided as the query divides its attention, from the finest scale on."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    start = 0.0
    for index, (stride, weight) in enumerate(zip(view.strides, view.scale_weights, strict=True)):
        shade = 0.92 - 0.6 * index / max(1, len(view.strides) - 1)
        axes.add_patch(
            Rectangle((start, 0), weight, 1, facecolor=str(shade), edgecolor="black", lw=0.6)
        )
        text = f"1/{stride}: {weight:.0%}"
        if weight * inches >= 0.07 * len(text):
            color = "black" if shade > 0.55 else "white"
            middle = start + weight / 2
            axes.text(middle, 0.46, text, color=color, fontsize=7.5, ha="center", va="center")
        start += weight
