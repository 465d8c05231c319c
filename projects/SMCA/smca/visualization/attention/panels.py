"""The panels of a co-attention picture, laid out on a figure. Lengths are in inches."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from PIL import Image

_MARGIN, _GAP, _TITLE, _BAR_GAP, _BAR, _LEGEND_LINE = 0.12, 0.16, 0.27, 0.05, 0.17, 0.14
_HEAD_GAP = 0.07  # between the maps of two heads, relative to the sides of a map
_MOST_PIXELS = 60_000  # of a figure's side; Matplotlib draws at most 65,535
_LONGEST = 800  # pixels of the longer side of the image under each map


class PanelGrid:
    """A figure with a row per object: the image in column 0, then a block of maps per model.

    All panels have the shape of the image. A block is a grid of equal fields: the map of a head
    takes one field, the mean of the heads takes a square of them. The heads of a single model are
    to the right of the mean; those of several models are below it.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        num_rows: int,
        num_models: int,
        num_heads: int,
        has_bars: bool,
        names: Sequence[str],
        legend: str,
    ):
        """
        Args:
            image: (h, w, 3) uint8.
            num_rows, num_models: rows of the figure, and blocks of a row.
            num_heads: heads of the model that has the most.
            has_bars: leave room for a bar below each block.
            names: names of the models, above their blocks; may be empty.
            legend: text below the last row.
        """
        if num_models > 1:
            self._side = self._across = min(4, num_heads)
            self._first_head = self._side, 0
        else:
            self._side = min(num_heads, max(2, round((num_heads / 2) ** 0.5)))
            self._across = -(-num_heads // self._side)
            self._first_head = 0, self._side
        self._lines = max(self._side, self._field(num_heads - 1)[0] + 1)
        self._columns = self._first_head[1] + self._across

        # The mean has the same area for images of all shapes.
        aspect = image.shape[1] / image.shape[0]
        width = (3.3 if num_models > 1 else 2.65) * aspect**0.5
        field = width / _span(self._side)
        bar = [_BAR_GAP, _BAR] if has_bars else [0, 0]
        row = [_TITLE, field / aspect * _span(self._lines), *bar, _GAP]
        widths = [_MARGIN, width, *[_GAP, field * _span(self._columns)] * num_models, _MARGIN]
        lines = textwrap.wrap(legend, width=int(15 * sum(widths)))
        above, below = _TITLE if names else 0, _LEGEND_LINE * len(lines)
        heights = [_MARGIN + above, *row * num_rows, below + _MARGIN / 2]
        size = sum(widths), sum(heights)
        self.figure = Figure(figsize=size, dpi=min(110, _MOST_PIXELS / max(size)))
        edges = {"left": 0, "bottom": 0, "right": 1, "top": 1, "wspace": 0, "hspace": 0}
        self._grid = self.figure.add_gridspec(
            len(heights), len(widths), height_ratios=heights, width_ratios=widths, **edges
        )
        for column, name in enumerate(names, start=1):
            place = self._grid[0, 2 * column + 1]
            self._write(place, _cut(name, self._letters(place, 11)), fontsize=11, weight="bold")
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
        place = self._place(row, column, head)
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
        title = _cut(title, self._letters(place, 9.5))
        axes.set_title(title, fontsize=9.5, parse_math=False)
        return axes

    def bar(self, row: int, column: int) -> Axes:
        """Empty axes below a model's block, as wide as the mean of its heads."""
        below = self._grid[5 * row + 4, 2 * column + 1]
        place = below.subgridspec(1, self._columns, wspace=_HEAD_GAP)[: self._side]
        axes = self.figure.add_subplot(place, label="scales")
        axes.set_axis_off()
        return axes

    def message(self, row: int, column: int, text: str) -> None:
        """Write ``text`` where the mean of a model's heads would be."""
        place = self._place(row, column)
        text = textwrap.fill(text, self._letters(place, 9))
        self._write(place, text, fontsize=9, color="0.4")

    def _place(self, row: int, column: int, head: int | None = None) -> SubplotSpec:
        """The fields of a head's map; without a head, those of the mean or the image."""
        columns = self._columns if column else self._side
        place = self._grid[5 * row + 2, 2 * column + 1]
        fields = place.subgridspec(self._lines, columns, wspace=_HEAD_GAP, hspace=_HEAD_GAP)
        return fields[: self._side, : self._side] if head is None else fields[self._field(head)]

    def _field(self, head: int) -> tuple[int, int]:
        """The row and column of a head's map in its block."""
        row, column = divmod(head, self._across)
        return self._first_head[0] + row, self._first_head[1] + column

    def _letters(self, place: SubplotSpec, fontsize: float) -> int:
        """How many letters fit beside each other."""
        width = place.get_position(self.figure).width * self.figure.get_figwidth()
        return max(2, int(width * 72 / (0.6 * fontsize)))

    def _write(self, place: SubplotSpec, text: str, **options: object) -> None:
        box = place.get_position(self.figure)
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        # A class may be called "$", which would begin a formula.
        self.figure.text(x, y, text, ha="center", va="center", parse_math=False, **options)


def _span(fields: int) -> float:
    """The length of ``fields`` fields and the gaps between them, in fields."""
    return fields + _HEAD_GAP * (fields - 1)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
