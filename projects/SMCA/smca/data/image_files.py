"""What image files hold, looked at without training on them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from .dataset import UNREADABLE, read_rgb

_ORIENTATION = 0x0112  # in EXIF; from 5 on, width and height are exchanged


class ImageFile(NamedTuple):
    """What an image file holds, or why it cannot be read."""

    size: tuple[int, int] | None = None  # width, height
    digest: str | None = None
    fault: str | None = None


def look_at(file_name: str, *, verify: bool) -> ImageFile:
    """
    Args:
        file_name: path.
        verify: decode all of it; else only its header is read.
    """
    try:
        if verify:
            size = read_rgb(file_name).size
            return ImageFile(size, hashlib.sha256(Path(file_name).read_bytes()).hexdigest())
        with Image.open(file_name) as image:
            # That of a PNG may stand at its end.
            turned = image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) >= 5
            return ImageFile(image.size[::-1] if turned else image.size)
    except UNREADABLE as error:
        return ImageFile(fault=repr(error))


def look_at_all(file_names: Sequence[str], *, verify: bool, title: str) -> Iterator[ImageFile]:
    """:func:`look_at` for many, with a bar of this title on a terminal.

    Images are decoded in as many processes as there are cores.
    """
    read = functools.partial(look_at, verify=verify)
    bar = functools.partial(tqdm, total=len(file_names), desc=title, unit=" images", disable=None)
    if not verify:
        yield from bar(map(read, file_names))
        return
    with ProcessPoolExecutor() as pool:
        yield from bar(pool.map(read, file_names, chunksize=16))
