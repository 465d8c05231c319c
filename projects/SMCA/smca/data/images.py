"""Image files, decoded as upright 8-bit RGB."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

# How names of image files end, in lower case.
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
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
# By the orientations that exchange rows and columns: what becomes of a box [x, y, w, h].
_TURNED_BOX = {
    5: "[y, x, h, w]",
    6: "[{height} - y - h, x, h, w]",
    7: "[{height} - y - h, {width} - x - w, h, w]",
    8: "[y, {width} - x - w, h, w]",
}


def image_files(folder: str) -> Iterator[str]:
    """Yield the paths of the image files in a folder and in all folders in it, in fixed order."""
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        # A link may lead back to a folder above.
        real = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(folders)}
        folders[:] = [name for name in real if real[name] not in seen]
        seen.update(real.values())
        images = (name for name in files if Path(name).suffix.lower() in IMAGES)
        # Macs put files with "._" before the names of others.
        yield from (os.path.join(place, n) for n in sorted(images) if not n.startswith("._"))


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
        remedy = "correct 'width' and 'height' in the annotation file"
        with open_image(record["file_name"]) as stored:
            turned = _TURNED_BOX.get(_orientation(stored))
        if turned and image.size == (height, width):
            turned = turned.format(width=width, height=height)
            remedy = (
                "EXIF turns it: width, height and boxes must be those of the turned image, where "
                f"a box [x, y, w, h] of the stored one is {turned}; docs/CUSTOM_DATA.md has lines "
                "that turn all boxes of a file"
            )
        raise OSError(
            f"{record['file_name']} is {image.width}x{image.height} pixels, its annotation says "
            f"{width}x{height}; {remedy}"
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
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image), grey_bits))
    # Pixels that are RGB already are not copied.
    return image if image.mode == "RGB" else image.convert("RGB")


def brightest(image: Image.Image) -> int:
    """Return the largest of an open image's whole grey values of more than 8 bits; 0 without."""
    return int(np.asarray(image).max()) if image.mode.startswith("I") else 0


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) that an open image has after it is turned, without decoding it."""
    width, height = image.size
    # From 5 on, an orientation exchanges rows and columns; of a TIFF Pillow itself does.
    kept = image.format == "TIFF" or stored_orientation(image) < 5
    return (width, height) if kept else (height, width)


def stored_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of an open image that is not decoded yet.

    It is 1, upright, if there is none or the EXIF is rubbish. EXIF that follows the pixels of a PNG
    is ignored: finding it would mean reading the whole file.
    """
    return 1 if image.format == "PNG" and "exif" not in image.info else _orientation(image)


def _orientation(image: Image.Image) -> int:
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
