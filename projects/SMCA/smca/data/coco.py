"""Datasets in COCO's format: where their files are, what they hold, and what is wrong with them.

A record is Detectron2's standard dict: ``file_name`` (absolute), ``image_id``, ``height``,
``width`` and ``annotations``, each with ``bbox`` (x, y, w, h in pixels), ``bbox_mode``,
``category_id`` (contiguous) and ``iscrowd``.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from ..validation import is_own_model

logger = logging.getLogger(__name__)

XYWH_ABS = 1  # as in detectron2.structures.BoxMode

# name: annotation file and image folder under $DETECTRON2_DATASETS, as in Detectron2.
_BUILTIN = {
    f"coco_2017_{split}": (f"coco/annotations/instances_{split}2017.json", f"coco/{split}2017")
    for split in ("train", "val")
}
_NUMBER = (int, float)


class DatasetError(ValueError):
    """A dataset that is missing or cannot be used; the message names the file and the place."""


@dataclass(frozen=True)
class CocoDataset:
    """A dataset in COCO's format.

    Attributes:
        name: as in DATASETS.TRAIN and DATASETS.TEST.
        json_file: annotation file.
        image_root: folder of the images.
        class_names: by contiguous index, which is the order of the COCO ids.
        category_ids: contiguous index -> COCO id.
        records: one dict an image, sorted by image id.
    """

    name: str
    json_file: str
    image_root: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: list[dict]


def dataset_files(cfg: CfgNode, name: str) -> tuple[str, str]:
    """Annotation file and image folder of a dataset, by its name.

    Raises:
        DatasetError: a name that is neither in DATASETS.COCO_FORMAT nor built in.
    """
    own = {entry[0]: (entry[1], entry[2]) for entry in cfg.DATASETS.COCO_FORMAT}
    if name in own:
        json_file, image_root = own[name]
        return os.path.expanduser(json_file), os.path.expanduser(image_root)
    if name in _BUILTIN:
        root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
        json_file, image_root = _BUILTIN[name]
        return os.path.join(root, json_file), os.path.join(root, image_root)
    raise DatasetError(
        f"unknown dataset {name!r}; known are {', '.join([*own, *_BUILTIN])}. A dataset of your "
        "own is named by [name, annotation file, image folder] in DATASETS.COCO_FORMAT"
    )


def load_datasets(cfg: CfgNode, names: Sequence[str]) -> list[CocoDataset]:
    """The datasets of DATASETS.TRAIN or DATASETS.TEST.

    Raises:
        DatasetError: as :func:`load_coco`; or the classes are not those of the other datasets, or
            not as many as the model has.
    """
    datasets = [load_coco(name, *dataset_files(cfg, name)) for name in names]
    check_classes(cfg, {dataset.name: dataset.class_names for dataset in datasets})
    return datasets


def check_classes(cfg: CfgNode, classes: Mapping[str, Sequence[str]]) -> None:
    """
    Args:
        classes: names of the classes of each dataset.

    Raises:
        DatasetError: not as many as the model has, or not the same in all datasets.
    """
    first = next(iter(classes), None)
    # A model of Detectron2 has its classes where its region heads have them.
    foreign = not is_own_model(cfg) and "ROI_HEADS" in cfg.MODEL
    group = "ROI_HEADS" if foreign else "SMCA"
    num_classes = cfg.MODEL[group].NUM_CLASSES
    for name, names in classes.items():
        if len(names) != num_classes:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DatasetError(
                f"MODEL.{group}.NUM_CLASSES is {num_classes}, but dataset {name!r} "
                f"has {len(names)} classes ({shown})"
            )
        if list(names) != list(classes[first]):
            raise DatasetError(
                f"datasets {first!r} and {name!r} have different classes, or in another order; "
                "compare 'categories' in their annotation files"
            )


def results_folder(cfg: CfgNode, name: str) -> str:
    """Where the detections on a dataset are written: OUTPUT_DIR/inference, and a folder each there
    when there are several datasets.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return os.path.join(folder, name) if len(cfg.DATASETS.TEST) > 1 else folder


def training_records(
    cfg: CfgNode, *, like: Mapping[str, Sequence[str]] | None = None
) -> list[dict]:
    """The records of all DATASETS.TRAIN, without boxes that cannot be learned from.

    Images without annotations are left out when DATALOADER.FILTER_EMPTY_ANNOTATIONS is set.

    Args:
        like: classes of datasets that those of training must be the same as.

    Raises:
        DatasetError: as :func:`load_datasets`, or nothing is left to train on.
    """
    records = []
    for dataset in load_datasets(cfg, cfg.DATASETS.TRAIN):
        check_classes(cfg, {**(like or {}), dataset.name: dataset.class_names})
        records += drop_bad_boxes(dataset.records, dataset.name)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = drop_empty(records)
    if not records:
        raise DatasetError(
            f"DATASETS.TRAIN ({', '.join(cfg.DATASETS.TRAIN) or 'empty'}) has no image to train "
            "on; name a dataset with boxes, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
        )
    return records


def load_coco(name: str, json_file: str, image_root: str) -> CocoDataset:
    """Read an annotation file.

    Raises:
        DatasetError: a path that does not exist; a file that is not JSON or not in COCO's format,
            with the entry that is wrong; a folder with none of the images.
    """
    for path, exists in ((json_file, os.path.isfile), (image_root, os.path.isdir)):
        if not exists(path):
            raise DatasetError(
                f"dataset {name!r}: {os.path.abspath(path)} does not exist; correct its entry in "
                "DATASETS.COCO_FORMAT, or for COCO itself set $DETECTRON2_DATASETS to the folder "
                "that holds coco/"
            )
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise DatasetError(f"dataset {name!r}: {json_file} is not JSON: {error}") from error
    try:
        categories, records = _parse(content, os.path.abspath(image_root))
    except _FormatError as error:
        raise DatasetError(
            f"dataset {name!r}: {json_file} is not in COCO's format for detection: {error}"
        ) from None
    if not any(os.path.exists(record["file_name"]) for record in records):
        raise DatasetError(
            f"dataset {name!r}: none of its {len(records)} images exists, the first would be "
            f"{records[0]['file_name']}; correct the image folder in DATASETS.COCO_FORMAT"
        )
    logger.info("%s: %d images of %d classes", name, len(records), len(categories))
    return CocoDataset(
        name=name,
        json_file=json_file,
        image_root=image_root,
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        records=records,
    )


def complete_annotations(annotations: list[dict]) -> None:
    """Add, in place, what pycocotools needs and other programs may leave out: ids, areas, crowds.

    Args:
        annotations: of a file in COCO's format.
    """
    for number, annotation in enumerate(annotations, start=1):
        # pycocotools takes a match with annotation 0 for no match.
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])


def drop_bad_boxes(records: list[dict], name: str) -> list[dict]:
    """``records`` less the boxes without area or wholly outside their image, which are counted.

    A box partly outside stays as it is; who maps the image clips it.
    """
    reasons: Counter[str] = Counter()
    kept_records = []
    for record in records:
        kept = []
        for annotation in record["annotations"]:
            reason = _fault(annotation["bbox"], record["height"], record["width"])
            if reason:
                reasons[reason] += 1
            else:
                kept.append(annotation)
        kept_records.append({**record, "annotations": kept})
    if reasons:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        logger.warning("%s: dropped %d unusable boxes: %s", name, reasons.total(), counts)
    return kept_records


def drop_empty(records: list[dict]) -> list[dict]:
    """The records with an annotation that is not a crowd."""
    kept = [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]
    if len(kept) < len(records):
        logger.info("left out %d images without annotations", len(records) - len(kept))
    return kept


def _fault(bbox: list[float], height: int, width: int) -> str | None:
    x, y, w, h = bbox
    if not all(map(math.isfinite, bbox)):
        return "not finite"
    if w <= 0 or h <= 0:
        return "of zero or negative size"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "outside their image"
    return None


class _FormatError(Exception):
    """What is wrong, and in which entry."""


def _parse(content: object, image_root: str) -> tuple[dict[int, str], list[dict]]:
    """Class names by COCO id, in the order of the ids, and the records in that of image ids."""
    sections = {key: _get(content, key, list, "the file") for key in ("images", "categories")}
    annotations = _get(content, "annotations", list, "the file")
    for key, section in sections.items():
        if not section:
            raise _FormatError(f"'{key}' is empty")

    categories: dict[int, str] = {}
    for position, entry in enumerate(sections["categories"]):
        where = f"categories[{position}]"
        category = _get(entry, "id", int, where)
        if category in categories:
            raise _FormatError(f"{where} has the id {category} of another category")
        categories[category] = _get(entry, "name", str, where)
    categories = dict(sorted(categories.items()))
    contiguous = {category: index for index, category in enumerate(categories)}

    records: dict[int, dict] = {}
    for position, entry in enumerate(sections["images"]):
        where = f"images[{position}]"
        image_id = _get(entry, "id", int, where)
        if image_id in records:
            raise _FormatError(f"{where} has the id {image_id} of another image")
        size = {key: _get(entry, key, int, where) for key in ("height", "width")}
        if min(size.values()) < 1:
            raise _FormatError(f"{where} has {size}, in pixels")
        file_name = os.path.join(image_root, _get(entry, "file_name", str, where))
        records[image_id] = {"file_name": file_name, "image_id": image_id, **size}
        records[image_id]["annotations"] = []

    strays = 0
    for position, entry in enumerate(annotations):
        where = f"annotations[{position}]"
        category = _get(entry, "category_id", int, where)
        if category not in contiguous:
            raise _FormatError(f"{where} has category_id {category}, which 'categories' lacks")
        bbox = _get(entry, "bbox", list, where)
        if len(bbox) != 4 or not all(isinstance(number, _NUMBER) for number in bbox):
            raise _FormatError(f"{where} has bbox {bbox!r}; it must be four numbers x, y, w, h")
        record = records.get(_get(entry, "image_id", int, where))
        if record is None:
            strays += 1
            continue
        record["annotations"].append(
            {
                "bbox": bbox,
                "bbox_mode": XYWH_ABS,
                "category_id": contiguous[category],
                "iscrowd": int(bool(entry.get("iscrowd", 0))),
            }
        )
    if strays:
        logger.warning("%d annotations are of images that the file does not have", strays)
    return categories, [records[image_id] for image_id in sorted(records)]


def _get(entry: object, key: str, kind: type, where: str):
    """``entry[key]``, which must be of this type."""
    if not isinstance(entry, dict):
        raise _FormatError(f"{where} is a {type(entry).__name__}, not an object")
    if key not in entry:
        raise _FormatError(f"{where} has no '{key}'")
    if not isinstance(entry[key], kind):
        raise _FormatError(f"{where} has {key} {entry[key]!r:.80}; it must be {kind.__name__}")
    return entry[key]
