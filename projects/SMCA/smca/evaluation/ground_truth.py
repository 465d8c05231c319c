"""What detections are scored against: an annotation file as pycocotools wants it."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Sequence

from pycocotools.coco import COCO

from ..data.coco_format import is_number, read_annotation_file
from ..errors import DatasetError

logger = logging.getLogger(__name__)


def read_truth(name: str, json_file: str) -> COCO:
    """The annotations of a file that a dataset was loaded from.

    Only what counts is kept, and what other programs leave out is added: ids, areas, crowds. A box
    without extent, or that is not finite, is empty: nothing can be found in it.

    Raises:
        DatasetError: a file that cannot be read, or is no longer in COCO's format.
    """
    content = read_annotation_file(name, json_file)
    truth = COCO()
    try:
        truth.dataset = {
            "images": [{"id": entry["id"]} for entry in content["images"]],
            "categories": [{"id": entry["id"]} for entry in content["categories"]],
            "info": {},
        }
        if "annotations" in content:
            entries = content["annotations"]
            # pycocotools takes a match with annotation 0 for no match.
            truth.dataset["annotations"] = [
                _annotation(entry, number) for number, entry in enumerate(entries, start=1)
            ]
            wrong = sum("area" in entry and not _is_area(entry["area"]) for entry in entries)
            if wrong:
                logger.warning("%s: %d areas are none; those of the boxes are taken", name, wrong)
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
    except (LookupError, TypeError, ValueError) as error:
        raise DatasetError(
            f"dataset {name!r}: {json_file} is not what detections are scored against, it has "
            f"perhaps changed: {error!r}"
        ) from error
    return truth


def distinct(names: Sequence[str]) -> list[str]:
    """The names; one that another before it has gets a number."""
    taken: dict[str, None] = {}
    for name in names:
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name} ({number})"
        taken[unique] = None
    return list(taken)


def _annotation(entry: dict, number: int) -> dict:
    x, y, w, h = entry["bbox"]
    real = all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0
    box = [x, y, w, h] if real else [0, 0, 0, 0]
    area = entry.get("area")
    return {
        "id": number,
        "image_id": entry["image_id"],
        "category_id": entry["category_id"],
        "bbox": box,
        "area": area if _is_area(area) else box[2] * box[3],
        "iscrowd": int(entry.get("iscrowd", 0)),
    }


def _is_area(area: object) -> bool:
    return is_number(area) and 0 <= area < math.inf
