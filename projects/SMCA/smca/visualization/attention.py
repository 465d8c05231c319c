"""Where queries look: co-attention maps over their image.

Shapes: Q queries shown, H heads, (h', w') cells of a feature map, S scales. Points are x, y in
pixels of the image.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_ROW = 2.6  # inches
_RED = "#ff2030"


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
    maps: np.ndarray,
    *,
    shared_centers: np.ndarray | None = None,
    head_centers: np.ndarray | None = None,
    covariances: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    scale_weights: np.ndarray | None = None,
    scale_names: Sequence[str] | None = None,
    stride: float | None = None,
    titles: Sequence[str] | None = None,
    out_png: str | os.PathLike | None = None,
) -> Figure:
    """One row a query: its detection, its mean co-attention, and the co-attention of each head.

    A red square marks the query's centre, which the heads share, a red ring the head's own, and a
    red line the head's Gaussian one standard deviation around it. Each map is drawn relative to
    its own largest value.

    Args:
        image: (h, w, 3) uint8.
        maps: (Q, H, h', w') non-negative weights. The key of column j, row i lies at the point
            (j, i) * stride, as it does for the Gaussians.
        shared_centers: (Q, 2) in pixels.
        head_centers: (Q, H, 2) in pixels.
        covariances: (Q, H, 2, 2) of the Gaussians, in squared pixels.
        boxes: (Q, 4) detections, x1, y1, x2, y2 in pixels.
        scale_weights: (Q, S) scale-selection weights, drawn as a bar under the detection.
        scale_names: (S,).
        stride: pixels from one key to the next; by default the map just spans the image.
        titles: (Q,).
        out_png: where to save the figure, if anywhere.
    """
    maps = np.asarray(maps, dtype=float)
    num_queries, num_heads, _, map_width = maps.shape
    height, width = image.shape[:2]
    stride = stride or width / map_width
    # Under the maps the image is dark and pale, so that what is bright there is attention.
    pale = (0.25 * image + 0.25 * image.mean(axis=2, keepdims=True)).astype(np.uint8)
    panel = _ROW * min(max(width / height, 0.6), 1.8)
    head_columns = -(-num_heads // 2)
    figure = Figure(
        figsize=(panel * (2 + head_columns / 2) + 0.3, (_ROW + 0.35) * num_queries), dpi=110
    )
    rows = figure.add_gridspec(
        num_queries, 1, left=0.01, right=0.99, top=1 - 0.3 / (_ROW * num_queries + 0.3),
        bottom=0.02, hspace=0.16,
    )  # fmt: skip
    for query in range(num_queries):
        cells = rows[query].subgridspec(1, 3, width_ratios=[1, 1, head_columns / 2], wspace=0.04)
        first = _panel(figure.add_subplot(cells[0]), image)
        mean = _panel(figure.add_subplot(cells[1]), pale)
        first.set_title(titles[query] if titles is not None else f"query {query}", fontsize=10)
        if boxes is not None:
            x1, y1, x2, y2 = boxes[query]
            for color, line_width in (("white", 3.5), (_RED, 1.8)):
                first.add_patch(
                    Rectangle(
                        (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=line_width
                    )
                )
        if scale_weights is not None:
            _draw_scales(first, scale_weights[query], scale_names)
        mean.set_title("mean of the heads", fontsize=10)
        _draw_heat(mean, maps[query].mean(axis=0), stride)
        if shared_centers is not None:
            _draw_shared_center(mean, shared_centers[query], size=7)

        heads = cells[2].subgridspec(2, head_columns, wspace=0.04, hspace=0.04)
        for head in range(num_heads):
            axes = _panel(figure.add_subplot(heads[head]), pale)
            if head == 0:
                axes.set_title("each head", fontsize=10, loc="left")
            _draw_heat(axes, maps[query, head], stride)
            if shared_centers is not None:
                _draw_shared_center(axes, shared_centers[query], size=4)
            if head_centers is None:
                continue
            center = head_centers[query, head]
            axes.plot(*center, "o", mfc="none", mec=_RED, ms=7, mew=1.4)
            if covariances is not None:
                axes.plot(*gaussian_ellipse(center, covariances[query, head]).T, color=_RED, lw=1)
    if out_png is not None:
        Path(out_png).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out_png)
    return figure


def _panel(axes: Axes, image: np.ndarray) -> Axes:
    height, width = image.shape[:2]
    # Without autoscaling nothing drawn later can widen the view beyond the image.
    axes.imshow(image, extent=(0, width, height, 0), interpolation="bilinear")
    axes.autoscale(False)
    axes.set_axis_off()
    return axes


def _draw_heat(axes: Axes, weights: np.ndarray, stride: float) -> None:
    # One more row and column, as keys lie on the left and upper edges of what they stand for.
    padded = np.pad(weights, ((0, 1), (0, 1)), mode="edge")
    height, width = padded.shape
    relative = padded / max(padded.max(), np.finfo(float).tiny)
    heat = colormaps["viridis"](relative)
    heat[..., 3] = 0.9 * relative**0.7
    axes.imshow(
        heat,
        extent=(-0.5 * stride, (width - 0.5) * stride, (height - 0.5) * stride, -0.5 * stride),
        interpolation="bilinear",
    )


def _draw_shared_center(axes: Axes, center: np.ndarray, size: float) -> None:
    axes.plot(*center, "s", color=_RED, ms=size, mec="white", mew=0.8)


def _draw_scales(axes: Axes, weights: np.ndarray, names: Sequence[str] | None) -> None:
    """A bar along the panel's lower edge, divided as the query divides its attention."""
    bar = axes.inset_axes((0.04, 0.03, 0.92, 0.07))
    bar.set(xlim=(0, 1), ylim=(0, 1))
    bar.set_axis_off()
    starts = np.cumsum(weights) - weights
    for index, (start, weight) in enumerate(zip(starts, weights, strict=True)):
        shade = 0.95 - 0.6 * index / max(1, len(weights) - 1)
        bar.add_patch(Rectangle((start, 0), weight, 1, facecolor=str(shade), edgecolor="black"))
        if weight > 0.2:
            name = f"{names[index]} " if names is not None else ""
            color = "black" if shade > 0.6 else "white"
            bar.text(
                start + weight / 2, 0.45, f"{name}{100 * weight:.0f}%", color=color,
                fontsize=7, ha="center", va="center",
            )  # fmt: skip
