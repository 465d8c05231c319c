"""The panels of a co-attention picture, laid out on a figure. Lengths are in inches."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from PIL import Image

_SIDE = 2.65  # of a square with the area of the image's panel
_MARGIN, _GAP, _TITLE, _BAR_GAP, _BAR, _LEGEND_LINE = 0.12, 0.16, 0.27, 0.05, 0.17, 0.14
_HEAD_GAP = 0.07  # between the maps of two heads, relative to the sides of a map
_FONT = 9.5
_MOST_PIXELS = 60_000  # of a figure's side; Matplotlib draws at most 65,535
_LONGEST = 800  # pixels of the longer side of the image under each map


class PanelGrid:
    """A figure with a row per object: the image in column 0, then a block of maps per model.

    All panels have the shape of the image. A block is a grid of equal fields: the mean of the heads
    takes a square of them on the left, the map of each head takes one field.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        num_rows: int,
        num_models: int,
        num_heads: int,
        has_bars: bool,
        legend: str,
    ):
        """
        Args:
            image: (h, w, 3) uint8.
            num_rows, num_models: rows of the figure, and blocks in a row.
            num_heads: heads of the model that has the most.
            has_bars: whether to leave room for bars below the means.
            legend: text below the last row.
        """
        # Several models leave less room for the heads of each.
        most = 4 if num_models > 1 else max(2, round((num_heads / 2) ** 0.5))
        self._lines = min(most, num_heads)
        self._across = -(-num_heads // self._lines)
        self._columns = self._lines + self._across

        aspect = image.shape[1] / image.shape[0]
        width = _SIDE * aspect**0.5
        block = width * _span(self._columns) / _span(self._lines)
        widths = [_MARGIN, width, *[_GAP, block] * num_models, _MARGIN]
        lines = textwrap.wrap(legend, width=int(15 * sum(widths)))
        bar = [_BAR_GAP, _BAR] if has_bars else [0, 0]
        row = [_TITLE, width / aspect, *bar, _GAP]
        heights = [*row * num_rows, len(lines) * _LEGEND_LINE + _MARGIN / 2]
        size = sum(widths), sum(heights)
        self.figure = Figure(figsize=size, dpi=min(110, _MOST_PIXELS / max(size)))
        edges = {"left": 0, "bottom": 0, "right": 1, "top": 1, "wspace": 0, "hspace": 0}
        self._grid = self.figure.add_gridspec(
            len(heights), len(widths), height_ratios=heights, width_ratios=widths, **edges
        )
        x, y = _MARGIN / size[0], _MARGIN / 2 / size[1]
        self.figure.text(x, y, "\n".join(lines), fontsize=7.5, color="0.3")

        small = Image.fromarray(image)
        small.thumbnail((_LONGEST, _LONGEST))
        self._bright = np.asarray(small)
        # Under the maps the image is dark and pale, so that only attention is bright there.
        grey = self._bright.mean(axis=2, keepdims=True)
        self._pale = (0.25 * self._bright + 0.25 * grey).astype(np.uint8)
        self._extent = 0, image.shape[1], image.shape[0], 0

    def panel(self, row: int, column: int, title: str = "", *, head: int | None = None) -> Axes:
        """Draw the image with a title; the axes count in pixels of the image.

        Args:
            row: index of the row.
            column: 0 for the image as it is; from 1 for the pale image under a model's map.
            title: text above the panel, cut to its width.
            head: index of the head; None for the mean of the heads.
        """
        place = self._grid[5 * row + 1, 2 * column + 1]
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
        axes = self._axes(place, label)
        axes.imshow(
            self._pale if column else self._bright,
            extent=self._extent,
            aspect="auto",
            interpolation="bilinear",
        )
        axes.autoscale(False)  # so that nothing drawn later widens the view beyond the image
        letters = max(2, int(self.width(axes) * 72 / (0.6 * _FONT)))
        if len(title) > letters:
            title = title[: letters - 1] + "…"
        axes.set_title(title, fontsize=_FONT, parse_math=False)  # a class may be called "$"
        return axes

    def bar(self, row: int, column: int) -> Axes:
        """Empty axes below the mean of a model's heads, as wide as the mean."""
        below = self._grid[5 * row + 3, 2 * column + 1]
        place = below.subgridspec(1, self._columns, wspace=_HEAD_GAP)[: self._lines]
        return self._axes(place, "scales")

    def width(self, axes: Axes) -> float:
        """The width of axes."""
        return axes.get_position().width * self.figure.get_figwidth()

    def _axes(self, place: SubplotSpec, label: str) -> Axes:
        axes = self.figure.add_subplot(place, label=label)
        axes.set_axis_off()
        return axes


def _span(fields: int) -> float:
    """The length of so many fields with the gaps between them, in fields."""
    return fields + _HEAD_GAP * (fields - 1)
