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

from ..dataset import open_image, read_rgb, turn_of

_SIDEWAYS = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}


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
        with open_image(file_name) as image:
            return ImageFile(image.size[::-1] if _is_sideways(image) else image.size)
    except OSError as error:
        return ImageFile(fault=str(error))


def _is_sideways(image: Image.Image) -> bool:
    """Whether an image that is not decoded has its height for its width."""
    if image.format == "TIFF":  # of which Pillow has exchanged them
        return False
    if image.format == "PNG" and "exif" not in image.info:  # to find it behind the pixels is slow
        return False
    return turn_of(image) in _SIDEWAYS


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
