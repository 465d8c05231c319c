"""Fonts that have the characters of class names and runs, which come in any script."""

from __future__ import annotations

import functools
import logging
import re
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageFont

if TYPE_CHECKING:  # training draws few pictures, and most names are ASCII
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# In the names of files whose fonts are taken last.
_STYLE = re.compile("bold|italic|oblique|light|thin|black|mono|serif|condensed", re.IGNORECASE)
_told: set[str] = set()  # characters that no font has


@functools.lru_cache
def legible(texts: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """Return each text as it can be written, and the file of a font that has its characters.

    The file is None for ASCII, which every font has. Characters that no font has are written as
    ``\\u732b``, and a warning names them once.
    """
    written, lacking = [], set()
    for text in texts:
        file = None
        if not text.isascii():
            file = next((file for file in _files() if _has(file, f"{text} 0123456789.")), "")
        if file == "":
            file = _files()[0]
            lacking |= {character for character in text if not _has(file, character)}
            text = "".join(ascii(c)[1:-1] if c in lacking else c for c in text)
        written.append((text, file))
    if new := lacking - _told:
        _told.update(new)
        logger.warning(
            "no font here has %s, which pictures show by their numbers; install one that has, such "
            "as Noto Sans CJK for Chinese, Japanese and Korean",
            "".join(sorted(new)),
        )
    return written


def make_legible(figure: Figure) -> Figure:
    """Give each text of a figure a font that has its characters; see :func:`legible`."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    fonts = legible(tuple(text.get_text() for text in texts))
    for text, (written, file) in zip(texts, fonts, strict=True):
        properties = text.get_fontproperties().copy()
        properties.set_file(file)
        text.set(text=written, fontproperties=properties)
    return figure


@functools.lru_cache(maxsize=16)
def font(file: str | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font for Pillow, its default one where the file is None."""
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def _has(file: str, text: str) -> bool:
    codes = [ord(character) for character in text if character.isprintable()]
    return bool(np.isin(codes, _codes(file)).all())


@functools.cache
def _codes(file: str) -> np.ndarray:
    """Return the code points that a font has, none if neither library can draw with it."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(file, 13)
        return np.array(list(FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return np.array([])


@functools.cache
def _files() -> list[str]:
    """Return the files of Matplotlib's own font and of the system's, plain ones first.

    Matplotlib's list of fonts is not used: it lacks those installed since it was written.
    """
    from matplotlib import font_manager

    found = font_manager.findSystemFonts()
    found.sort(key=lambda file: (bool(_STYLE.search(file)), file))
    return [font_manager.findfont("DejaVu Sans"), *found]
