"""A picture of where queries look: co-attention maps over their image, as in the paper's Figure 3.

Points are x, y in pixels of the image. Lengths on the figure are in inches.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..fonts import make_legible
from .views import AttentionView, Detection, Panel

_RED = "#ff2030"
_MESSAGE = {"fontsize": 9, "color": "white", "ha": "center", "va": "center", "parse_math": False}
_SIDE = 2.65  # of a square with the area of the image's panel
_MARGIN, _GAP, _TITLE, _BAR_GAP, _BAR, _LEGEND_LINE = 0.12, 0.16, 0.27, 0.05, 0.17, 0.14
_HEAD_GAP = 0.07  # between the maps of two heads, relative to the sides of a map
_FONT = 9.5
_MOST_PIXELS = 60_000  # of a figure's side; Matplotlib draws at most 65,535
_LONGEST = 800  # pixels of the longer side of the image under each map


def draw_co_attention(
    image: np.ndarray,
    rows: Sequence[Sequence[Panel]],
    *,
    row_titles: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
) -> Figure:
    """Draw the co-attention of queries: a row per object, a column per model.

    A row begins with the image and the first model's detection. Each model then shows the mean of
    its heads' maps and the map of each head. A legend below explains the marks.

    Args:
        image: (h, w, 3) uint8.
        rows: the panels of each row, one per model.
        row_titles: titles above the image of each row; by default the first model's detections.
        column_titles: names of the models, above their maps.
    """
    grid = _PanelGrid(image, rows)
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
                text = textwrap.fill(panel, int(12 * grid.size(axes)[0]))
                axes.text(0.5, 0.5, text, **_MESSAGE, transform=axes.transAxes)
            else:
                title = f"{name}: {_caption(panel[0])}" if name else "mean of the heads"
                _draw_model(grid, number, column, title, *panel)
    return make_legible(grid.figure)


def gaussian_ellipse(center: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The line one standard deviation around a Gaussian, where it is exp(-1/2) of its peak.

    From its centre (2,) and covariance (2, 2), 72 points of the line: (72, 2).
    """
    angles = np.linspace(0, 2 * np.pi, 72)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return center + circle @ np.linalg.cholesky(covariance).T


class _PanelGrid:
    """A figure with a row per object: the image in column 0, then a block of maps per model.

    All panels have the shape of the image. A block is a grid of equal fields: the mean of the heads
    takes a square of them on the left, the map of each head takes one field.
    """

    def __init__(self, image: np.ndarray, rows: Sequence[Sequence[Panel]]):
        views = [panel[1] for row in rows for panel in row if not isinstance(panel, str)]
        num_heads = max((len(view.maps) for view in views), default=1)
        # Several models leave less room for the heads of each.
        most = 4 if len(rows[0]) > 1 else max(2, round((num_heads / 2) ** 0.5))
        self._lines = min(most, num_heads)
        self._across = -(-num_heads // self._lines)
        self._columns = self._lines + self._across

        aspect = image.shape[1] / image.shape[0]
        width = _SIDE * aspect**0.5
        block = width * _span(self._columns) / _span(self._lines)
        widths = [_MARGIN, width, *[_GAP, block] * len(rows[0]), _MARGIN]
        legend = textwrap.wrap(_legend(views), width=int(15 * sum(widths)))
        has_bars = any(view.scale_weights is not None for view in views)
        row = [_TITLE, width / aspect, _GAP + (_BAR_GAP + _BAR) * has_bars]
        heights = [*row * len(rows), len(legend) * _LEGEND_LINE + _MARGIN / 2]
        size = sum(widths), sum(heights)
        self.figure = Figure(figsize=size, dpi=min(110, _MOST_PIXELS / max(size)))
        edges = {"left": 0, "bottom": 0, "right": 1, "top": 1, "wspace": 0, "hspace": 0}
        self._grid = self.figure.add_gridspec(
            len(heights), len(widths), height_ratios=heights, width_ratios=widths, **edges
        )
        x, y = _MARGIN / size[0], _MARGIN / 2 / size[1]
        self.figure.text(x, y, "\n".join(legend), fontsize=7.5, color="0.3")

        small = Image.fromarray(image)
        small.thumbnail((_LONGEST, _LONGEST))
        self._bright = np.asarray(small)
        # Under the maps the image is dark and pale, so that only attention is bright there.
        grey = self._bright.mean(axis=2, keepdims=True)
        self._pale = (0.25 * self._bright + 0.25 * grey).astype(np.uint8)
        self._extent = 0, image.shape[1], image.shape[0], 0

    def panel(self, row: int, column: int, title: str = "", *, head: int | None = None) -> Axes:
        """Draw the image with a title, cut to its width; the axes count in pixels of the image.

        Column 0 has the image as it is. The others have the pale image under a model's map: that of
        one head, or without ``head`` the mean of the heads.
        """
        place = self._grid[3 * row + 1, 2 * column + 1]
        if column:
            fields = place.subgridspec(
                self._lines, self._columns, wspace=_HEAD_GAP, hspace=_HEAD_GAP
            )
            if head is None:
                place = fields[:, : self._lines]
            else:
                line, across = divmod(head, self._across)
                place = fields[line, self._lines + across]
        label = f"head {head}" if head is not None else "mean" if column else "image"
        axes = self.figure.add_subplot(place, label=label)
        axes.set_axis_off()
        axes.imshow(
            self._pale if column else self._bright,
            extent=self._extent,
            aspect="auto",
            interpolation="bilinear",
        )
        axes.autoscale(False)  # so that nothing drawn later widens the view beyond the image
        letters = max(2, int(self.size(axes)[0] * 72 / (0.6 * _FONT)))
        if len(title) > letters:
            title = title[: letters - 1] + "…"
        axes.set_title(title, fontsize=_FONT, parse_math=False)  # a class may be called "$"
        return axes

    def size(self, axes: Axes) -> np.ndarray:
        """The width and height of axes."""
        return axes.get_position().size * self.figure.get_size_inches()


def _span(fields: int) -> float:
    """The length of so many fields with the gaps between them, in fields."""
    return fields + _HEAD_GAP * (fields - 1)


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
    grid: _PanelGrid, row: int, column: int, title: str, found: Detection, view: AttentionView
) -> None:
    mean = grid.panel(row, column, title)
    _draw_heat(mean, view.maps.mean(axis=0), view.steps)
    _draw_box(mean, found.box, thickness=0.6)
    _draw_shared_center(mean, view, size=6)
    if view.scale_weights is not None:
        _draw_scales(mean, view, *grid.size(mean))
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


def _draw_scales(mean: Axes, view: AttentionView, width: float, height: float) -> None:
    """Draw a bar below the mean of the heads, of the scales' shares from the finest scale on."""
    bar = mean.inset_axes((0, -(_BAR_GAP + _BAR) / height, 1, _BAR / height), label="scales")
    bar.set_axis_off()
    bar.set(xlim=(0, 1), ylim=(0, 1))
    start = 0.0
    shades = np.linspace(0.92, 0.32, len(view.strides))
    for stride, weight, shade in zip(view.strides, view.scale_weights, shades, strict=True):
        bar.add_patch(
            Rectangle((start, 0), weight, 1, facecolor=str(shade), edgecolor="black", lw=0.6)
        )
        text = f"1/{stride}: {weight:.0%}"
        if weight * width >= 0.07 * len(text):
            color = "black" if shade > 0.55 else "white"
            middle = start + weight / 2
            bar.text(middle, 0.46, text, color=color, fontsize=7.5, ha="center", va="center")
        start += weight
