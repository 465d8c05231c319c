"""Records become samples: seeded augmentation, and image files that cannot be read."""

from __future__ import annotations

import logging
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import ExifTags, Image
from torch.utils.data import Dataset

from ..errors import DatasetError
from .reading import note
from .sampler import Draw

logger = logging.getLogger(__name__)

# Pixels of the long side before a crop, at most. An image of 1 x 4000 pixels, its short side made
# 600, would fill 4 GB.
LONGEST_BEFORE_CROP = 20_000

# How an image is to be turned for the values of its EXIF orientation.
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
    """An image file that is open, and mostly still to be decoded.

    Raises:
        OSError: the file is missing, or not an image that can be read, whatever Pillow raises when
            it finds out, here or in the block.
    """
    if os.path.exists(file_name) and not os.path.isfile(file_name):
        # A pipe would be waited for.
        raise OSError("it is no file, but a folder, a pipe or a device")
    try:
        # Given the path, Pillow maps uncompressed files, and scrambles TIFFs that are turned.
        with open(file_name, "rb") as file, Image.open(file) as image:
            if image.format == "EPS":
                raise OSError("it is PostScript, a program, which is not run")
            yield image
    except Image.UnidentifiedImageError as error:
        raise OSError("it is no image of a known format") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise OSError(
            f"it has more than the {most:,} pixels that are read, lest it fill the memory; "
            "make it smaller or cut it into parts, or raise PIL.Image.MAX_IMAGE_PIXELS in Python"
        ) from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"it is damaged: {error!r}") from error


def read_rgb(file_name: str) -> Image.Image:
    """An image file as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        OSError: see :func:`open_image`.
    """
    with open_image(file_name) as image:
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
        OSError: grey values that are not finite, negative, beyond 16 bits (whole numbers) or 255
            (fractional ones), or so low that all would be black.
    """
    image.load()
    if (turn := turn_of(image)) is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    # No copy of pixels that are right already.
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, or fractional ones in 0..255, as 8 bits."""
    least, most, whole = values.min(), values.max(), values.dtype.kind in "iu"
    levels = 2**16 if whole else 2**8
    # All of the last would be black: they are 8 bits in 16, or fractions of 1.
    if not 0 <= least <= most <= levels - 1 or 0 < most <= levels / 256:
        raise OSError(
            f"its values are {least:g} to {most:g}, of which it does not say what is white; save "
            "it with 8 bits, or with all of 16"
        )
    return (values >> 8 if whole else values).astype(np.uint8)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright, or None where it is, or where its EXIF is rubbish."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None


def aspect_groups(records: Sequence[dict], enabled: bool) -> list[int]:
    """0 for wide images and 1 for the others, or all 0 where not ``enabled``."""
    return [int(enabled and record["width"] <= record["height"]) for record in records]


class PackedRecords(Sequence):
    """Records in one block of memory, which loader processes share.

    Python objects would be copied into each of them as their reference counts change.
    """

    def __init__(self, records: Sequence[dict]):
        packed = [pickle.dumps(record, protocol=-1) for record in records]
        self._ends = np.cumsum([len(part) for part in packed], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        begin = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[begin : self._ends[index]].data)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch (CPU), and give back their states after."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        # torch.manual_seed would seed the devices too.
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class TrainingDataset(Dataset):
    """Maps draws to samples. For an image that cannot be read, the next readable one is taken."""

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], object]):
        """
        Args:
            records: dicts with ``file_name``.
            mapper: record -> sample; may use the generators of Python, NumPy and torch.
        """
        self.records = PackedRecords(records)
        self.mapper = mapper
        # In shared memory: one warning a file, not one a loader process.
        self._warned = torch.zeros(len(records), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> object:
        """
        Raises:
            DatasetError: no image of the dataset can be read.
        """
        for step in range(len(self)):
            index = (draw.index + step) % len(self)
            record = self.records[index]
            note(record["file_name"])
            with seeded(draw.seed):
                try:
                    return self.mapper(record)
                except OSError as error:
                    self._warn(index, record["file_name"], error)
        raise DatasetError(f"none of the {len(self)} training images can be read")

    def _warn(self, index: int, file_name: str, error: BaseException) -> None:
        if not self._warned[index]:
            self._warned[index] = True
            logger.warning("cannot read %s: %s; training goes on without it", file_name, error)


class EvaluationDataset(Dataset):
    """Maps records to samples; an image that cannot be read ends the evaluation."""

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], object]):
        self.records = PackedRecords(records)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> object:
        """
        Raises:
            DatasetError: the image cannot be read.
        """
        record = self.records[index]
        note(record["file_name"])
        try:
            return self.mapper(record)
        except OSError as error:
            raise DatasetError(
                f"cannot read {record['file_name']}: {error}; evaluation needs every image"
            ) from error
