"""Image files, decoded as upright 8-bit RGB."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image

# The transposition that makes an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def open_image(file_name: str) -> Iterator[Image.Image]:
    """Open an image file; most formats are decoded only when their pixels are used.

    Raises:
        OSError: the file is missing or cannot be read as an image. Whatever else Pillow raises
            while it opens the file, or in the block, becomes an OSError too.
    """
    if os.path.exists(file_name) and not os.path.isfile(file_name):
        # Reading a pipe could wait forever.
        raise OSError("it is not a file, but a folder, a pipe or a device")
    try:
        # Given a path, Pillow maps uncompressed files into memory, and then scrambles TIFFs that
        # have to be turned.
        with open(file_name, "rb") as file, Image.open(file) as image:
            if image.format == "EPS":
                raise OSError("it is PostScript, a program, which is not run")
            yield image
    except Image.UnidentifiedImageError as error:
        raise OSError("it is not an image of a known format") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise OSError(
            f"it has more than {limit:,} pixels, which could fill the memory; make it smaller or "
            "cut it into parts, or raise PIL.Image.MAX_IMAGE_PIXELS in Python"
        ) from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"it is damaged: {error!r}") from error


def read_rgb(file_name: str) -> Image.Image:
    """Read an image file as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        OSError: see :func:`open_image` and :func:`upright_rgb`.
    """
    with open_image(file_name) as image:
        return upright_rgb(image)


def read_record(record: dict) -> Image.Image:
    """Read the image of a dataset's record as :func:`read_rgb` does.

    Raises:
        OSError: the file cannot be read, or its size is not the record's: boxes that were drawn on
            an image of another size are wrong.
    """
    image = read_rgb(record["file_name"])
    width, height = record.get("width", image.width), record.get("height", image.height)
    if image.size != (width, height):
        raise OSError(
            f"{record['file_name']} is {image.width}x{image.height} pixels, its annotation says "
            f"{width}x{height}; correct 'width' and 'height' in the annotation file"
        )
    return image


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        OSError: the range of its grey values does not tell which value is white.
    """
    image.load()
    if (orientation := _orientation(image)) != 1:
        image = image.transpose(_TURNS[orientation])
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    # Pixels that are RGB already are not copied.
    return image if image.mode == "RGB" else image.convert("RGB")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) that an open image has after it is turned, without decoding it."""
    # Pillow swaps the sides of a TIFF itself. In a PNG, EXIF that follows the pixels is ignored:
    # finding it would mean reading the whole file.
    kept = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
    width, height = image.size
    # From 5 on, an orientation exchanges rows and columns.
    return (width, height) if kept or _orientation(image) < 5 else (height, width)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if there is none or the EXIF is rubbish."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if orientation in _TURNS else 1
    except Exception:
        return 1


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Convert grey values to 8 bits: whole numbers from 16 bits, fractional ones from 0..255."""
    low, high, whole = values.min(), values.max(), values.dtype.kind in "iu"
    levels = 2**16 if whole else 2**8
    # The second condition finds 8-bit values stored in 16 bits and fractions of 1: they would all
    # become black.
    if not 0 <= low <= high <= levels - 1 or 0 < high <= levels / 256:
        raise OSError(
            f"its values run from {low:g} to {high:g}, which does not tell what is white; save it "
            "with 8 bits, or use the whole range of 16 bits"
        )
    return (values >> 8 if whole else values).astype(np.uint8)
