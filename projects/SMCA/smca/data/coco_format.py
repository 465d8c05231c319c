"""COCO's annotation format, read entry by entry; and other formats, which readers turn into it.

The functions take the ``content`` of an annotation file, and a ``report`` that is told what is
wrong with an entry. Either it raises, as :func:`refuse` makes it, or the entry is left out.
"""

import json
import os
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from fvcore.common.registry import Registry

from ..errors import CONTROLS, DatasetError

SMCA_READER_REGISTRY = Registry("SMCA_READER")
SMCA_READER_REGISTRY.__doc__ = """Functions that read annotations of another format, by name.

An annotation file ``<name>:<path>`` is read by ``name(path)``, which returns the content of a COCO
file: lists ``images``, ``categories`` and ``annotations`` with the fields of ``_FIELDS``.
"""

XYWH_ABS = 1  # as in detectron2.structures.BoxMode
_INT64 = 2**63  # ids are 64 bits wide in NumPy and torch
_MAX_FLOAT32 = 3.4e38  # training has boxes in float32
_MIN_SIDE = 1e-3  # pixels of a box inside its image; less may vanish in float32
Report = Callable[[str], None]


def is_number(value: object) -> bool:
    """Tell whether a JSON value is a number, which need not be finite."""
    return isinstance(value, float) or _is_int(value)


def _is_int(value: object) -> bool:
    # JSON's true is an int in Python.
    return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64


def _is_side(value: object) -> bool:
    return _is_int(value) and value > 0


def _is_text(value: object) -> bool:
    # Names are written to terminals and tables, and name files.
    return isinstance(value, str) and bool(value.strip()) and not CONTROLS.search(value)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


_INT = _is_int, "an int of 64 bits"
_SIDE = _is_side, "a positive int of 64 bits, in pixels"
_TEXT = _is_text, "text without control characters"
_BOX = _is_box, "four numbers x, y, w, h"
# The fields that entries must have, by section: a test and its description. Entries may have more.
_FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "categories": {"id": _INT, "name": _TEXT},
    "images": {"id": _INT, "file_name": _TEXT, "height": _SIDE, "width": _SIDE},
    "annotations": {"image_id": _INT, "category_id": _INT, "bbox": _BOX},
}


def refuse(name: str, json_file: str) -> Report:
    """Return a report that raises a :class:`DatasetError` for the first entry that is wrong."""

    def report(message: str) -> None:
        raise DatasetError(
            f"dataset {name!r}: {json_file} is not in COCO's format for detection: {message}"
        )

    return report


def read_annotation_file(name: str, json_file: str, image_root: str | None = None) -> dict:
    """Return the content of a dataset's annotation file, whose entries are not checked yet.

    Args:
        json_file: a file in COCO's format, or ``<reader>:<path>``; see ``SMCA_READER_REGISTRY``.

    Raises:
        DatasetError: a path does not exist; the file cannot be read or is not a JSON object.
    """
    if not json_file:
        raise DatasetError(
            f"dataset {name!r} has no annotation file in DATASETS.COCO_FORMAT; only pre-training "
            "by train_net.py or smca.d2.Trainer does without (docs/PRETRAINING.md)"
        )
    reader, _, path = json_file.partition(":")
    own = reader in SMCA_READER_REGISTRY
    file = os.path.expanduser(path) if own else json_file
    hint = "" if own or not path else f"; a reader {reader!r} of your own needs --import"
    for place, is_one, kind in (
        # Reading a pipe could wait forever.
        (file, os.path.exists if own else os.path.isfile, "file"),
        (image_root, os.path.isdir, "folder"),
    ):
        if place is not None and not is_one(place):
            raise DatasetError(
                f"dataset {name!r}: {os.path.abspath(place)} is not an existing {kind}; correct "
                "its entry in DATASETS.COCO_FORMAT, or for COCO itself set $DETECTRON2_DATASETS to "
                f"the folder that holds coco/{hint}"
            )
    content = SMCA_READER_REGISTRY.get(reader)(file) if own else _read_json(name, file)
    if not isinstance(content, dict):
        refuse(name, json_file)(f"it is a {type(content).__name__}, not an object")
    return content


def _read_json(name: str, json_file: str) -> object:
    try:
        # Some programs begin a file with a byte order mark.
        with open(json_file, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise DatasetError(f"dataset {name!r}: {json_file} cannot be read: {error}") from error
    except ValueError as error:
        raise DatasetError(f"dataset {name!r}: {json_file} is not JSON: {error}") from error


def read_class_names(name: str, json_file: str) -> list[str]:
    """Return the class names in a dataset's annotation file, in the order of their ids.

    Raises:
        DatasetError: the file cannot be read, or its categories are not in COCO's format.
    """
    content = read_annotation_file(name, json_file)
    return list(read_categories(content, refuse(name, json_file)).values())


def read_categories(content: dict, report: Report) -> dict[int, str]:
    """Return an annotation file's class names by COCO id, in the order of the ids."""
    entries = _entries(content, "categories", report)
    return dict(sorted((entry["id"], entry["name"]) for _, entry in entries))


def read_images(content: dict, image_root: str, report: Report) -> dict[int, dict]:
    """Return an annotation file's images as records by image id, in the order of the ids.

    The records, see :mod:`smca.data.coco`, have no annotations yet.
    """
    root = os.path.abspath(image_root)
    records = {
        entry["id"]: {
            "file_name": os.path.normpath(os.path.join(root, entry["file_name"])),
            "image_id": entry["id"],
            "height": entry["height"],
            "width": entry["width"],
            "annotations": [],
        }
        for _, entry in _entries(content, "images", report)
    }
    return dict(sorted(records.items()))


def read_annotations(
    content: dict, categories: dict[int, str], report: Report
) -> Iterator[tuple[int, int, dict]]:
    """Yield each annotation's position in the file, its image id, and itself as records have it."""
    contiguous = {category: index for index, category in enumerate(categories)}
    for position, entry in _entries(content, "annotations", report):
        category, crowd = entry["category_id"], entry.get("iscrowd", 0)
        if category not in contiguous:
            report(f"annotations[{position}] has category_id {category}, which 'categories' lacks")
        elif crowd not in (0, 1):
            report(f"annotations[{position}] has iscrowd {reprlib.repr(crowd)}; it must be 0 or 1")
        else:
            annotation = {
                "bbox": entry["bbox"],
                "bbox_mode": XYWH_ABS,
                "category_id": contiguous[category],
                "iscrowd": int(crowd),
            }
            yield position, entry["image_id"], annotation


def box_fault(bbox: list[float], height: int, width: int) -> str | None:
    """Return why nothing can be learned from a box ``x, y, w, h`` in an image, or None."""
    x, y, w, h = bbox
    if not all(abs(number) <= _MAX_FLOAT32 for number in bbox):
        return "not finite"
    if w <= 0 or h <= 0:
        return "of zero or negative size"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "outside their image"
    if min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)) < _MIN_SIDE:
        return "of less than a thousandth of a pixel"
    return None


def _entries(content: dict, section: str, report: Report) -> Iterator[tuple[int, dict]]:
    """Yield the position and the content of each entry of a section that has all its fields."""
    if not isinstance(content.get(section), list):
        report(f"the file has no list '{section}'")
        return
    if not content[section] and section != "annotations":
        report(f"the file has no entries in '{section}'")
    seen = set()
    for position, entry in enumerate(content[section]):
        fault = _fault(entry, _FIELDS[section])
        if not fault and section != "annotations":
            fault = f"has the id {entry['id']} of another" if entry["id"] in seen else None
            seen.add(entry["id"])
        if fault:
            report(f"{section}[{position}] {fault}")
        else:
            yield position, entry


def _fault(entry: object, fields: dict[str, tuple[Callable[[Any], bool], str]]) -> str | None:
    """Return which field an entry lacks or has wrong, or None."""
    if not isinstance(entry, dict):
        return f"is a {type(entry).__name__}, not an object"
    for key, (fits, expected) in fields.items():
        if key not in entry:
            return f"has no '{key}'"
        if not fits(entry[key]):
            return f"has {key} {reprlib.repr(entry[key])}; it must be {expected}"
    return None
