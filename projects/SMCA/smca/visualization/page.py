"""A page of pictures in one file: HTML with its pictures inside and without links."""

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
body { font: 15px/1.45 sans-serif; color: #222; margin: 2em auto; max-width: 110em; padding: 0 1em }
h1 { font-size: 1.4em }
img { max-width: 100%; height: auto; border: 1px solid #ddd }
figure { margin: 2em 0 }
figcaption { color: #444; margin-top: 0.3em }
table { border-collapse: collapse; font-size: 0.9em }
th, td { text-align: left; padding: 0.2em 0.8em; border-bottom: 1px solid #ddd }
"""


def write_page(
    path: str | os.PathLike,
    *,
    title: str,
    introduction: Sequence[str],
    pictures: Sequence[tuple[bytes, Sequence[str]]],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """Write an HTML file that needs no other file.

    Args:
        path: path of the file; its folder is made if it is missing.
        title: title of the page.
        introduction: lines of text below the title.
        pictures: bytes of a PNG file and lines of its caption, from top to bottom.
        columns, rows: heading and cells of the table at the end.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        f'<head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>',
        f"<body>\n<h1>{escape(title)}</h1>\n<p>{_lines(introduction)}</p>",
        *(_figure(*picture) for picture in pictures),
        f"<table>\n{_row(columns, 'th')}",
        *(_row(cells, "td") for cells in rows),
        "</table>\n</body>\n</html>\n",
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(parts), encoding="utf-8")


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
