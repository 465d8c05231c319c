"""COCO's format for detection, read entry by entry: some stop at the first that is wrong, others
list them all.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import CONTROLS, DatasetError

XYWH_ABS = 1  # as in detectron2.structures.BoxMode
_WORD = 2**63  # ids and numbers are 64 bits wide in NumPy and torch
_SIDE = 2**31  # pixels: more than any image format has
_LONGEST = 1000  # characters of a name
_FLOAT32 = 3.4e38  # the most that boxes can be, as training has them
_LEAST = 1e-3  # pixels of a box in its image; of less float32 may leave nothing


class FormatError(Exception):
    """What is wrong, and in which entry."""


# Is given what is wrong with an entry, which is then left out; or stops there.
Report = Callable[[FormatError], None]


def refuse(name: str, json_file: str) -> Report:
    """A report that stops at the first entry that is wrong, with a :class:`DatasetError`."""

    def report(error: FormatError) -> None:
        raise DatasetError(
            f"dataset {name!r}: {json_file} is not in COCO's format for detection: {error}"
        ) from None

    return report


def read_annotation_file(name: str, json_file: str, image_root: str) -> dict:
    """The content of a dataset's annotation file, of which nothing is known but that it is JSON.

    Raises:
        DatasetError: a path that does not exist; a file that is not a JSON object.
    """
    for path, exists in ((json_file, os.path.exists), (image_root, os.path.isdir)):
        if not exists(path):
            raise DatasetError(
                f"dataset {name!r}: {os.path.abspath(path)} does not exist; correct its entry in "
                "DATASETS.COCO_FORMAT, or for COCO itself set $DETECTRON2_DATASETS to the folder "
                "that holds coco/"
            )
    return read_json(name, json_file)


def read_json(name: str, json_file: str) -> dict:
    """The content of a dataset's annotation file; its images need not be there.

    Raises:
        DatasetError: a file that cannot be read, or is not a JSON object.
    """
    if os.path.exists(json_file) and not os.path.isfile(json_file):
        # A pipe would be waited for, a device never end.
        raise DatasetError(
            f"dataset {name!r}: {json_file} is no file, but a folder, a pipe or a device"
        )
    try:
        # Some programs begin a file with a byte order mark.
        with open(json_file, encoding="utf-8-sig") as file:
            content = json.load(file, object_pairs_hook=_object)
    except OSError as error:
        raise DatasetError(f"dataset {name!r}: {json_file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"dataset {name!r}: {json_file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        refuse(name, json_file)(FormatError(f"it is a {type(content).__name__}, not an object"))
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which Python would silently keep the last of several equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {reprlib.repr(twice)} more than once")
    return content


def read_categories(content: dict, report: Report) -> dict[int, str]:
    """Class names by COCO id, in the order of the ids.

    Args:
        content: of an annotation file.
        report: see above.
    """
    categories: dict[int, str] = {}

    def read(entry: object, where: str) -> tuple[int, str]:
        category = _get(entry, "id", int, where)
        if category in categories:
            raise FormatError(f"{where} has the id {category} of another category")
        return category, _get(entry, "name", str, where)

    for _, (category, name) in _each(content, "categories", read, report):
        categories[category] = name
    return dict(sorted(categories.items()))


def read_images(content: dict, image_root: str, report: Report) -> dict[int, dict]:
    """Records by image id, in the order of the ids; each of them without annotations yet.

    Args:
        content: of an annotation file.
        image_root: folder of the images.
        report: see above.
    """
    root = os.path.abspath(image_root)
    inside = os.path.join(root, "")
    records: dict[int, dict] = {}

    def read(entry: object, where: str) -> dict:
        image_id = _get(entry, "id", int, where)
        if image_id in records:
            raise FormatError(f"{where} has the id {image_id} of another image")
        size = {key: _get(entry, key, int, where) for key in ("height", "width")}
        if not all(0 < side < _SIDE for side in size.values()):
            raise FormatError(f"{where} has {size}, in pixels")
        name = _get(entry, "file_name", str, where)
        file_name = os.path.normpath(os.path.join(root, name))
        if not file_name.startswith(inside):
            raise FormatError(
                f"{where} has file_name {name!r}, which is not inside the image folder {root}; "
                "give file names below it, or a folder that holds all images"
            )
        return {"file_name": file_name, "image_id": image_id, **size, "annotations": []}

    for _, record in _each(content, "images", read, report):
        records[record["image_id"]] = record
    return dict(sorted(records.items()))


def read_annotations(
    content: dict, categories: dict[int, str], report: Report
) -> Iterator[tuple[int, int, dict]]:
    """Place in the file, image id and annotation, as it stands in records, of each entry.

    Args:
        content: of an annotation file.
        categories: of :func:`read_categories`.
        report: see above.
    """
    contiguous = {category: index for index, category in enumerate(categories)}

    def read(entry: object, where: str) -> tuple[int, dict]:
        category = _get(entry, "category_id", int, where)
        if category not in contiguous:
            raise FormatError(f"{where} has category_id {category}, which 'categories' lacks")
        bbox = _get(entry, "bbox", list, where)
        if len(bbox) != 4 or not all(map(is_number, bbox)):
            raise FormatError(
                f"{where} has bbox {reprlib.repr(bbox)}; it must be four numbers x, y, w, h"
            )
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise FormatError(f"{where} has iscrowd {reprlib.repr(crowd)}; it must be 0 or 1")
        return _get(entry, "image_id", int, where), {
            "bbox": bbox,
            "bbox_mode": XYWH_ABS,
            "category_id": contiguous[category],
            "iscrowd": int(crowd),
        }

    for position, (image_id, annotation) in _each(content, "annotations", read, report):
        yield position, image_id, annotation


def box_fault(bbox: list[float], height: int, width: int) -> str | None:
    """Why nothing can be learned from a box, or None.

    Args:
        bbox: x, y, w, h in pixels.
        height, width: of its image, in pixels.
    """
    x, y, w, h = bbox
    if not all(abs(number) <= _FLOAT32 for number in bbox):
        return "not finite"
    if w <= 0 or h <= 0:
        return "of zero or negative size"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "outside their image"
    if min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)) < _LEAST:
        return "of less than a thousandth of a pixel"
    return None


def _each(
    content: dict, key: str, read: Callable[[object, str], Any], report: Report
) -> Iterator[tuple[int, Any]]:
    """Place and ``read(entry, where)`` of each entry of a section."""
    try:
        section = _get(content, key, list, "the file")
        if not section and key != "annotations":
            raise FormatError(f"'{key}' is empty")
    except FormatError as error:
        report(error)
        return
    for position, entry in enumerate(section):
        try:
            found = read(entry, f"{key}[{position}]")
        except FormatError as error:
            report(error)
        else:
            yield position, found


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number, perhaps one that is not finite."""
    # JSON's true is an int in Python.
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and -_WORD <= value < _WORD)


def _get(entry: object, key: str, kind: type, where: str) -> Any:
    """``entry[key]``, which must be of this type, and one that can be worked with."""
    if not isinstance(entry, dict):
        raise FormatError(f"{where} is a {type(entry).__name__}, not an object")
    if key not in entry:
        raise FormatError(f"{where} has no '{key}'")
    value = entry[key]
    if not isinstance(value, kind) or (kind is int and not is_number(value)):
        expected = "an int of 64 bits" if kind is int else kind.__name__
        raise FormatError(f"{where} has {key} {reprlib.repr(value)}; it must be {expected}")
    if kind is str:
        _check_text(value, f"{where} has {key} {reprlib.repr(value)}")
    return value


def _check_text(text: str, place: str) -> None:
    """Names come to stand in terminals, tables and file systems."""
    if not text.strip():
        raise FormatError(f"{place}, which is empty")
    if len(text) > _LONGEST:
        raise FormatError(f"{place} of {len(text)} characters; it may have {_LONGEST}")
    if found := CONTROLS.search(text):
        raise FormatError(f"{place} with the control character {found[0]!r}; take it out")
