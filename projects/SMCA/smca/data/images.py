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


def read_rgb(file_name: str, grey_bits: int = 0) -> Image.Image:
    """Read an image file as :func:`upright_rgb` converts it.

    Raises:
        OSError: see :func:`open_image` and :func:`upright_rgb`.
    """
    with open_image(file_name) as image:
        return upright_rgb(image, grey_bits)


def read_record(record: dict, grey_bits: int = 0) -> Image.Image:
    """Read the image of a dataset's record as :func:`read_rgb` does.

    Raises:
        OSError: the file cannot be read, or its size is not the record's: boxes that were drawn on
            an image of another size are wrong.
    """
    image = read_rgb(record["file_name"], grey_bits)
    width, height = record.get("width", image.width), record.get("height", image.height)
    if image.size != (width, height):
        raise OSError(
            f"{record['file_name']} is {image.width}x{image.height} pixels, its annotation says "
            f"{width}x{height}; correct 'width' and 'height' in the annotation file"
        )
    return image


def upright_rgb(image: Image.Image, grey_bits: int = 0) -> Image.Image:
    """Convert an image to 8-bit RGB, turned as its EXIF orientation says.

    Args:
        grey_bits: 2 ** ``grey_bits`` - 1 is white among grey values of more than 8 bits, see
            INPUT.GREY_BITS; 0: as many bits as the brightest value has.

    Raises:
        OSError: a grey value is above white, or the values do not tell which one is white.
    """
    image.load()
    if (orientation := _orientation(image)) != 1:
        image = image.transpose(_TURNS[orientation])
    if image.mode == "F" or is_deep_grey(image):
        image = Image.fromarray(_eight_bits(np.asarray(image), grey_bits))
    # Pixels that are RGB already are not copied.
    return image if image.mode == "RGB" else image.convert("RGB")


def is_deep_grey(image: Image.Image) -> bool:
    """Whether the pixels of an open image are whole grey values of more than 8 bits."""
    return image.mode.startswith("I")


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


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Convert grey values to 8 bits: whole numbers of ``bits`` bits, fractional ones of 0..255."""
    low, high, whole = values.min(), values.max(), values.dtype.kind in "iu"
    in_range = 0 <= low <= high <= 2 ** (16 if whole else 8) - 1
    # Fractions of 1, and values of 8 bits in files of 16, would all become black.
    is_dark = 0 < high <= (255 if whole else 1) and not (whole and bits)
    if not in_range or is_dark:
        hint = ", or set INPUT.GREY_BITS 8 if 255 is white" if in_range and whole else ""
        raise OSError(
            f"its values run from {low:g} to {high:g}, which does not tell what is white; save it "
            f"with 8 bits{hint}"
        )
    if not whole:
        return values.astype(np.uint8)
    needed = max(9, int(high).bit_length())
    if bits and high >= 2**bits:
        raise OSError(
            f"its grey values run to {high}, but with INPUT.GREY_BITS {bits} white is "
            f"{2**bits - 1}; set it to {needed}, or more if the brightest image has more"
        )
    return (values >> ((bits or needed) - 8)).astype(np.uint8)
