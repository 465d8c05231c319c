"""Files that show where queries of one or several models look in an image: a picture and a page.

Both have a row per object and decoder layer, and a column per model. The page is one HTML file,
with its pictures inside and without links.
"""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from .figure import draw_co_attention
from .views import AttentionView, Detection, Panel

_STYLE = """
body { font: 15px/1.45 sans-serif; color: #222; margin: 2em auto; max-width: 110em; padding: 0 1em }
h1 { font-size: 1.4em }
img { max-width: 100%; height: auto; border: 1px solid #ddd }
figure { margin: 2em 0 }
figcaption { color: #444; margin-top: 0.3em }
table { border-collapse: collapse; font-size: 0.9em }
th, td { text-align: left; padding: 0.2em 0.8em; border-bottom: 1px solid #ddd }
"""


@dataclass(frozen=True)
class Column:
    """The part of one model in the picture and the page.

    Attributes:
        name: name of the model, or "" if it is the only one.
        config, weights: the files that the model comes from.
        objects: for each object the model's detection and where its query looks in each layer; or
            a line that says why there is none.
    """

    name: str
    config: str
    weights: str
    objects: Sequence[tuple[Detection, Sequence[AttentionView]] | str]

    @property
    def source(self) -> str:
        """Name, config and weights in a line."""
        return f"{self.name}: {self.config}, {self.weights}".removeprefix(": ")


def write_co_attention(
    folder: str | os.PathLike, image_file: str, image: np.ndarray, columns: Sequence[Column]
) -> list[Path]:
    """Write ``<image>_attention.png`` and ``<image>_attention.html``, and return their paths.

    Args:
        folder: folder of the files; it is made if it is missing.
        image_file: file of the image, which the page names.
        image: (h, w, 3) uint8.
        columns: the models, with the same objects.
    """
    names = [column.name for column in columns] if columns[0].name else None
    rows, titles, figures, table = [], [], [], []
    for number, objects in enumerate(zip(*(column.objects for column in columns), strict=True), 1):
        num_layers = max(len(shown[1]) for shown in objects if not isinstance(shown, str))
        for layer in range(num_layers):
            row = [_panel(shown, layer) for shown in objects]
            title = _title(row)
            rows.append(row)
            titles.append(title)
            caption = [f"{image_file}: {title}"]
            for column, panel in zip(columns, row, strict=True):
                facts = {"class": panel} if isinstance(panel, str) else _facts(*panel)
                words = [f"{name} {value}" for name, value in facts.items() if value]
                told = panel if isinstance(panel, str) else ", ".join(words)
                caption.append(f"{column.source}: {told}")
                table.append({"object": str(number), "model": column.name, **facts})
            png = io.BytesIO()
            draw_co_attention(image, [row], row_titles=[title], column_titles=names).savefig(png)
            figures.append(_figure(png.getvalue(), caption))

    header = list(max(table, key=len))  # a model without the object has few
    title = f"Co-attention in {Path(image_file).name}"
    size = f"{image_file}, {image.shape[1]} x {image.shape[0]} pixels."
    introduction = [size, *(column.source for column in columns)]
    page = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        f'<head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>',
        f"<body>\n<h1>{escape(title)}</h1>\n<p>{_lines(introduction)}</p>",
        *figures,
        "<table>",
        _row(header, "th"),
        *(_row([facts.get(name, "") for name in header], "td") for facts in table),
        "</table>\n</body>\n</html>\n",
    ]
    stem = Path(folder, f"{Path(image_file).stem}_attention")
    png_file, html_file = Path(f"{stem}.png"), Path(f"{stem}.html")
    png_file.parent.mkdir(parents=True, exist_ok=True)
    draw_co_attention(image, rows, row_titles=titles, column_titles=names).savefig(png_file)
    html_file.write_text("\n".join(page), encoding="utf-8")
    return [png_file, html_file]


def _panel(shown: tuple[Detection, Sequence[AttentionView]] | str, layer: int) -> Panel:
    if isinstance(shown, str):
        return shown
    found, views = shown
    return (found, views[layer]) if layer < len(views) else f"this model has {len(views)} layers"


def _title(row: Sequence[Panel]) -> str:
    """The object and the decoder layer, as the first model that found the object has them."""
    found, view = next(panel for panel in row if not isinstance(panel, str))
    score = f" {found.score:.0%}" if len(row) == 1 else ""
    return f"{found.class_name}{score}, layer {view.layer}"


def _facts(found: Detection, view: AttentionView) -> dict[str, str]:
    """The numbers of a panel by their names in the table."""
    shares = (
        () if view.scale_weights is None else zip(view.strides, view.scale_weights, strict=True)
    )
    return {
        "decoder layer": str(view.layer),
        "query": str(found.query),
        "class": found.class_name,
        "score": f"{found.score:.3f}",
        "box": " ".join(f"{number:.1f}" for number in found.box),
        "IoU with the first model's": "" if found.overlap is None else f"{found.overlap:.3f}",
        "scale weights": ", ".join(f"1/{stride}: {share:.3f}" for stride, share in shares),
    }


def _lines(lines: Sequence[str]) -> str:
    return "<br>".join(map(escape, lines))


def _figure(png: bytes, caption: Sequence[str]) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(caption[0])}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_lines(caption)}</figcaption></figure>"
    )


def _row(cells: Sequence[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"
