"""Where the panels of a co-attention picture stand.

Places are x, y, width and height in inches, from the sheet's upper left corner.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

Place = tuple[float, float, float, float]

MARGIN, GAP, SMALL_GAP = 0.12, 0.16, 0.06
TITLE, BAR = 0.27, 0.24  # what a line of text above a panel and a bar below it take
_LONGEST = 800  # pixels of the image that is put on the sheet; panels are smaller
_MOST_PIXELS = 60_000  # of a side; Matplotlib draws no more than 65,535


@dataclass(frozen=True)
class Layout:
    """Sizes of a panel and of a model's block; places in the block, from its upper left corner.

    Attributes:
        panel: width and height of the image and of the mean map.
        block: of all that is shown of one model: mean map, bar and heads' maps.
        mean, bar, heads: their places.
    """

    panel: tuple[float, float]
    block: tuple[float, float]
    mean: Place
    bar: Place
    heads: list[Place]

    @classmethod
    def of(cls, *, aspect: float, num_heads: int, bars: bool, several: bool) -> Layout:
        """
        Args:
            aspect: width of the image over its height.
            num_heads: of the model that has most.
            bars: some model weighs its scales.
            several: heads stand below their mean, so that models have room beside each other;
                otherwise they stand at its right.
        """
        # Panels of equal area, whatever their shape.
        side = 3.3 if several else 2.65
        width, height = side * aspect**0.5, side / aspect**0.5
        below = BAR if bars else 0.0
        if several:
            columns = min(4, num_heads)
            left, top = 0.0, TITLE + height + below + SMALL_GAP
            head_width = (width - SMALL_GAP * (columns - 1)) / columns
            head_height = head_width / aspect
        else:
            lines = min(num_heads, max(2, round((num_heads / 2) ** 0.5)))
            columns = -(-num_heads // lines)
            left, top = width + GAP, TITLE
            head_height = (height - SMALL_GAP * (lines - 1)) / lines
            head_width = head_height * aspect
        heads = [
            (
                left + index % columns * (head_width + SMALL_GAP),
                top + index // columns * (head_height + SMALL_GAP),
                head_width,
                head_height,
            )
            for index in range(num_heads)
        ]
        right = max(width, *(x + w for x, _, w, _ in heads))
        bottom = max(TITLE + height + below, *(y + h for _, y, _, h in heads))
        return cls(
            panel=(width, height),
            block=(right, bottom),
            mean=(0.0, TITLE, width, height),
            bar=(0.0, TITLE + height + 0.05, width, BAR - 0.07),
            heads=heads,
        )


class Sheet:
    """A figure on which panels show one image, bright, or dark and pale.

    Attributes:
        figure: it.
    """

    def __init__(self, size: tuple[float, float], image: np.ndarray, *, dpi: int = 110):
        """
        Args:
            size: width and height.
            image: (h, w, 3) uint8.
            dpi: pixels an inch; fewer on a sheet that would be too large.
        """
        self.figure = Figure(figsize=size, dpi=min(dpi, _MOST_PIXELS / max(size)))
        height, width = image.shape[:2]
        self._extent = (0, width, height, 0)
        small = Image.fromarray(image)
        small.thumbnail((_LONGEST, _LONGEST))
        self._bright = np.asarray(small)
        # Under the maps the image is dark and pale, so that what is bright there is attention.
        grey = self._bright.mean(axis=2, keepdims=True)
        self._pale = (0.25 * self._bright + 0.25 * grey).astype(np.uint8)

    def axes(self, place: Place, label: str) -> Axes:
        """Empty axes."""
        x, y, width, height = place
        across, down = self.figure.get_size_inches()
        bounds = (x / across, 1 - (y + height) / down, width / across, height / down)
        axes = self.figure.add_axes(bounds, label=label)
        axes.set_axis_off()
        return axes

    def panel(self, place: Place, label: str, title: str = "", *, pale: bool = True) -> Axes:
        """The image, in whose pixels the axes count, and a line above it."""
        axes = self.axes(place, label)
        # Without autoscaling nothing drawn later can widen the view beyond the image.
        axes.imshow(
            self._pale if pale else self._bright,
            extent=self._extent,
            aspect="auto",
            interpolation="bilinear",
        )
        axes.autoscale(False)
        x, y, width, _ = place
        self.text((x, y - TITLE, width, TITLE), title, fontsize=9.5)
        return axes

    def text(
        self,
        place: Place,
        text: str,
        *,
        fontsize: float,
        wrap: bool = False,
        ha: str = "center",
        **options,
    ) -> None:
        """Text half way down a place, cut to a line that fits; with ``wrap`` lines that fit.

        Args:
            ha, options: as Matplotlib's text has them.
        """
        x, y, width, height = place
        fitting = max(2, int(width * 72 / (0.6 * fontsize)))
        if wrap:
            text = textwrap.fill(text, fitting)
        elif len(text) > fitting:
            text = text[: fitting - 1] + "…"
        across, down = self.figure.get_size_inches()
        x = x + width / 2 if ha == "center" else x
        self.figure.text(
            x / across,
            1 - (y + height / 2) / down,
            text,
            fontsize=fontsize,
            ha=ha,
            va="center",
            parse_math=False,  # a class may be called "$"
            **options,
        )
