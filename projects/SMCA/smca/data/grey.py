"""How many bits the grey values of datasets have, found in a sample of their images."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from itertools import islice

from fvcore.common.config import CfgNode

from . import coco_format
from .coco import dataset_files, own_datasets
from .images import brightest, image_files, open_image

_SAMPLE = 32  # images of a dataset, at most
_FIRST = 4  # images of the sample; if none is grey of more than 8 bits, the others are not read
_LISTED = 1000  # images of a folder without annotations that the sample is taken from
_PART = 2**18  # bytes at either end of an annotation file, where the images' names are looked for
_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)+")')


def count_grey_bits(cfg: CfgNode) -> tuple[int, str]:
    """Count the bits that grey values use in the images of DATASETS.COCO_FORMAT that ``cfg`` names.

    Annotation files are not read as a whole, and of most datasets only a few headers; images are
    decoded only if they are grey and have more than 8 bits.

    Returns:
        the bits of the brightest value and a text that names its image; 0 and "" if no image
        of the sample has grey values above 255 and up to 65535.
    """
    own, most, source = own_datasets(cfg), 0, ""
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        files = _sample(*dataset_files(cfg, name)) if name in own else []
        if not any(map(_brightest, files[:: -(-len(files) // _FIRST) or 1])):
            continue
        for file in files:
            value = _brightest(file)
            if most < value < 2**16:
                most, source = value, f"{file} of dataset {name!r}, up to {value}"
            if most >= 2**15:
                break
    return (most.bit_length(), source) if most > 255 else (0, "")


def _brightest(file: str) -> int:
    # Files that cannot be read are told where they are needed.
    with contextlib.suppress(OSError), open_image(file) as image:
        return brightest(image)
    return 0


def _sample(json_file: str, image_root: str) -> list[str]:
    """Return image files of a dataset, the same ones in every run."""
    files: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        files = list(dict.fromkeys(_files(json_file, image_root)))
    return files[:: -(-len(files) // _SAMPLE) or 1]


def _files(json_file: str, image_root: str) -> Iterator[str]:
    if not json_file:
        # The folders of a pre-training may have millions, whose listing takes minutes.
        yield from islice(image_files(image_root), _LISTED)
        return
    if not os.path.isfile(json_file):
        # Of a file in another format only the reader knows the images.
        content = coco_format.read_annotation_file("", json_file)
        images = coco_format.read_images(content, image_root, lambda _: None).values()
        yield from (record["file_name"] for record in images)
        return
    with open(json_file, "rb") as file:
        for start in (0, max(0, os.path.getsize(json_file) - _PART)):
            file.seek(start)
            for text in _NAME.findall(file.read(_PART).decode(errors="replace")):
                yield os.path.join(image_root, json.loads(text))
