"""Where queries of one or several models look in an image: a picture, and a page that explains it.

Both have a row an object and decoder layer, and a column a model.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..page import Picture, write_page
from .figure import Cell, draw_co_attention
from .queries import Detection
from .recording import Look

_TABLE = (
    *("object", "model", "decoder layer", "query", "class", "score", "box"),
    *("IoU with the first model's", "scale weights"),
)


@dataclass(frozen=True)
class Column:
    """What one model has to show.

    Attributes:
        name: of the model, or "" where there is only one.
        config, weights: where it comes from.
        objects: of each object the model's detection and where its query looks in each of the
            layers; or a line saying why there is nothing.
    """

    name: str
    config: str
    weights: str
    objects: Sequence[tuple[Detection, Sequence[Look]] | str]

    def cells(self, index: int, num_layers: int) -> list[Cell]:
        """What to draw of one object, for so many layers."""
        shown = self.objects[index]
        if isinstance(shown, str):
            return [shown] * num_layers
        found, looks = shown
        absent = [f"this model has {len(looks)} layers"] * (num_layers - len(looks))
        return [*((found, look) for look in looks), *absent]

    @property
    def source(self) -> str:
        """Name, config and weights in a line."""
        return f"{self.name}: {self.config}, {self.weights}".removeprefix(": ")


def write_co_attention(
    folder: str | os.PathLike, image_file: str, image: np.ndarray, columns: Sequence[Column]
) -> list[Path]:
    """Write ``<image>_attention.png`` and ``<image>_attention.html``.

    Args:
        folder: it is made where it is missing.
        image_file: the image's, named in the page.
        image: (h, w, 3) uint8.
        columns: of the models, with the same objects.

    Returns:
        the two files.
    """
    png, page = (
        Path(folder, f"{Path(image_file).stem}_attention{suffix}") for suffix in (".png", ".html")
    )
    rows, titles, captions, table = [], [], [], []
    for index in range(len(columns[0].objects)):
        looks = [column.objects[index][1] for column in columns if _shown(column.objects[index])]
        by_model = [column.cells(index, max(map(len, looks))) for column in columns]
        for cells in zip(*by_model, strict=True):
            lines = [_facts(cell) for cell in cells]
            title = _title(cells)
            rows.append(cells)
            titles.append(title)
            captions.append(
                [
                    f"{image_file}: {title}",
                    *(
                        f"{column.source}: {', '.join(f'{n} {v}'.strip() for n, v in line if v)}"
                        for column, line in zip(columns, lines, strict=True)
                    ),
                ]
            )
            for column, line in zip(columns, lines, strict=True):
                table.append([str(index + 1), column.name, *(value for _, value in line)])
    names = [column.name for column in columns] if columns[0].name else None
    draw_co_attention(image, rows, row_titles=titles, column_titles=names, out_png=png)
    height, width = image.shape[:2]
    write_page(
        page,
        title=f"Co-attention in {Path(image_file).name}",
        introduction=[
            f"{image_file}, {width} x {height} pixels.",
            *(column.source for column in columns),
            "The large map is the mean of the heads, the small ones are the heads'. A square marks "
            "the query's centre, which the heads share; a circle the head's own, in the ellipse "
            "where its Gaussian is one standard deviation wide. With several scales the Gaussian "
            "is that of the scale which counts most.",
        ],
        pictures=[
            Picture(_png(image, [cells], title, names), caption)
            for cells, title, caption in zip(rows, titles, captions, strict=True)
        ],
        columns=_TABLE,
        rows=table,
    )
    return [png, page]


def _shown(cell: object) -> bool:
    return not isinstance(cell, str)


def _title(cells: Sequence[Cell]) -> str:
    """The object and the decoder layer, as the first model that shows it has them."""
    found, look = next(cell for cell in cells if _shown(cell))
    score = f" {found.score:.0%}" if len(cells) == 1 else ""
    return f"{found.class_name}{score}, layer {look.layer}"


def _facts(cell: Cell) -> list[tuple[str, str]]:
    """The table's last columns, with words for a caption."""
    if isinstance(cell, str):
        return [("", value) for value in ("", "", cell, "", "", "", "")]
    found, look = cell
    scales = ""
    if look.scale_weights is not None:
        weighed = zip(look.strides, look.scale_weights, strict=True)
        scales = ", ".join(f"1/{stride}: {weight:.3f}" for stride, weight in weighed)
    return [
        ("decoder layer", str(look.layer)),
        ("query", str(found.query)),
        ("class", found.class_name),
        ("score", f"{found.score:.3f}"),
        ("box", " ".join(f"{number:.1f}" for number in found.box)),
        ("IoU with the first model's", "" if found.overlap is None else f"{found.overlap:.3f}"),
        ("scale weights", scales),
    ]


def _png(
    image: np.ndarray, rows: Sequence[Sequence[Cell]], title: str, names: Sequence[str] | None
) -> bytes:
    file = io.BytesIO()
    figure = draw_co_attention(image, rows, row_titles=[title], column_titles=names)
    figure.savefig(file, format="png")
    return file.getvalue()
