"""The ground truth that detections are scored against."""

import logging
import math
from operator import itemgetter

from faster_coco_eval import COCO

from ..data.coco_format import is_number, read_annotation_file
from ..errors import DatasetError

logger = logging.getLogger(__name__)


def read_ground_truth(name: str, json_file: str) -> COCO:
    """Read the annotation file of dataset ``name`` for faster-coco-eval.

    Returns:
        images, categories and annotations with the keys that scoring needs. The categories are in
        the order of their ids, which is that of the contiguous labels. Annotations get new ids,
        since a match with annotation 0 would be taken for no match. A missing area becomes the
        box's, a missing ``iscrowd`` 0. A box without extent, or one that is not finite, becomes
        empty: it counts as missed.

    Raises:
        DatasetError: the file cannot be read, or is no longer in COCO's format.
    """
    content = read_annotation_file(name, json_file)
    coco = COCO()
    try:
        coco.dataset = {
            "images": [{"id": entry["id"]} for entry in content["images"]],
            "categories": [
                {"id": entry["id"], "name": entry["name"]}
                for entry in sorted(content["categories"], key=itemgetter("id"))
            ],
        }
        if "annotations" in content:
            entries = content["annotations"]
            coco.dataset["annotations"] = [
                _annotation(entry, number) for number, entry in enumerate(entries, start=1)
            ]
            wrong = sum("area" in entry and not _is_area(entry["area"]) for entry in entries)
            if wrong:
                logger.warning("%s: %d invalid areas are replaced by their boxes'", name, wrong)
        coco.createIndex()
    except (LookupError, TypeError, ValueError) as error:
        raise DatasetError(
            f"dataset {name!r}: {json_file} cannot be scored against, perhaps it has changed "
            f"since it was loaded: {error!r}"
        ) from error
    return coco


def _annotation(entry: dict, number: int) -> dict:
    x, y, w, h = entry["bbox"]
    valid = all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0
    box = [x, y, w, h] if valid else [0, 0, 0, 0]
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
