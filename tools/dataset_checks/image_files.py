"""What the check of datasets reads of an image file."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from smca.data.images import (
    brightest,
    open_image,
    stored_orientation,
    upright_rgb,
    upright_size,
)


class ImageFile(NamedTuple):
    """The size of an image file as it is shown, and what tells its copies; or why it is unreadable.

    Copies have the same SHA-256 or, where only the header was read, the same name and length.
    ``orientation`` is EXIF's; ``bits`` are those that whole grey values of more than 8 use, or 0
    where only the header was read.
    """

    size: tuple[int, int] | None = None  # width, height
    fingerprint: str | tuple[str, int] | None = None
    fault: str | None = None
    orientation: int = 1
    bits: int = 0


def probe_image(file_name: str, *, verify: bool, grey_bits: int = 0) -> ImageFile:
    """Read an image file's header, or with ``verify`` decode the file and compute its SHA-256.

    ``grey_bits`` is INPUT.GREY_BITS.
    """
    try:
        with open_image(file_name) as image:
            orientation = stored_orientation(image)
            if not verify:
                fingerprint = os.path.basename(file_name), os.path.getsize(file_name)
                return ImageFile(upright_size(image), fingerprint, orientation=orientation)
            digest = hashlib.sha256(Path(file_name).read_bytes()).hexdigest()
            size = upright_rgb(image, grey_bits).size
            # Of a TIFF it is gone once that is decoded, of some PNGs known only then.
            orientation = max(orientation, stored_orientation(image))
            return ImageFile(size, digest, None, orientation, brightest(image).bit_length())
    except OSError as error:
        return ImageFile(fault=str(error))
