"""The sizes and contents of a dataset's image files, and why some cannot be read."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..images import open_image, read_rgb, upright_size


class ImageFile(NamedTuple):
    """The size of an image file as it is shown and its SHA-256, or why it cannot be read."""

    size: tuple[int, int] | None = None  # width, height
    digest: str | None = None
    fault: str | None = None


def probe_image(file_name: str, *, verify: bool) -> ImageFile:
    """Read an image file's header, or with ``verify`` decode the file and compute its digest."""
    try:
        if verify:
            size = read_rgb(file_name).size
            return ImageFile(size, hashlib.sha256(Path(file_name).read_bytes()).hexdigest())
        with open_image(file_name) as image:
            return ImageFile(upright_size(image))
    except OSError as error:
        return ImageFile(fault=str(error))


def probe_images(file_names: Sequence[str], *, verify: bool, title: str) -> Iterator[ImageFile]:
    """Yield :func:`probe_image` of each file, and show a progress bar on a terminal.

    Images are decoded in as many processes as there are cores.
    """
    probe = functools.partial(probe_image, verify=verify)
    bar = functools.partial(tqdm, total=len(file_names), desc=title, unit=" images", disable=None)
    if not verify:
        yield from bar(map(probe, file_names))
        return
    with ProcessPoolExecutor() as pool:
        yield from bar(pool.map(probe, file_names, chunksize=16))
