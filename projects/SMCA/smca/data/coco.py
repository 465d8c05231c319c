"""Datasets in COCO's format: where their files are, what they hold, and what is wrong with them.

A record is Detectron2's standard dict: ``file_name`` (absolute), ``image_id``, ``height``,
``width`` and ``annotations``, each with ``bbox`` (x, y, w, h in pixels), ``bbox_mode``,
``category_id`` (contiguous) and ``iscrowd``.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from ..config import is_own_model
from ..errors import DatasetError
from .coco_classes import COCO_IDS
from .coco_format import (
    box_fault,
    read_annotation_file,
    read_annotations,
    read_categories,
    read_images,
    refuse,
)

logger = logging.getLogger(__name__)

# name: annotation file and image folder under $DETECTRON2_DATASETS. COCO's are as in Detectron2;
# the shapes are drawn when a run first uses them (smca.data.shapes).
COCO = {
    f"coco_2017_{split}": (f"coco/annotations/instances_{split}2017.json", f"coco/{split}2017")
    for split in ("train", "val")
}
DRAWN = {
    f"shapes_{split}": (f"shapes/annotations/{split}.json", f"shapes/{split}")
    for split in ("train", "val")
}
_BUILTIN = COCO | DRAWN


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


def own_datasets(cfg: CfgNode) -> dict[str, tuple[str, str]]:
    """Annotation file and image folder of each DATASETS.COCO_FORMAT; they hide built-in ones.

    Raises:
        DatasetError: a name that would lead out of the folder where its results are written.
    """
    for name, *_ in cfg.DATASETS.COCO_FORMAT:
        if not name.isprintable() or {"", ".", ".."} & set(name.split(os.sep)):
            raise DatasetError(
                f"DATASETS.COCO_FORMAT has the name {name!r}, which is none for a folder of results"
            )
    return {name: (json_file, root) for name, json_file, root in cfg.DATASETS.COCO_FORMAT}


def datasets_root() -> str:
    """The folder of the built-in datasets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def dataset_files(cfg: CfgNode, name: str) -> tuple[str, str]:
    """Annotation file and image folder of a dataset, by its name.

    Raises:
        DatasetError: a name that is neither in DATASETS.COCO_FORMAT nor built in.
    """
    own = own_datasets(cfg)
    if name in own:
        json_file, image_root = own[name]
        return os.path.expanduser(json_file), os.path.expanduser(image_root)
    if name in _BUILTIN:
        root = datasets_root()
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
            remedy = f"set it to {len(names)}" + ("" if foreign else ", or to 0 to have it counted")
            raise DatasetError(
                f"MODEL.{group}.NUM_CLASSES is {num_classes}, but dataset {name!r} "
                f"has {len(names)} classes ({shown(names)}); {remedy}"
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
    content = read_annotation_file(name, json_file, image_root)
    report = refuse(name, json_file)
    categories = read_categories(content, report)
    by_id = read_images(content, image_root, report)
    strays = 0
    for _, image_id, annotation in read_annotations(content, categories, report):
        if image_id in by_id:
            by_id[image_id]["annotations"].append(annotation)
        else:
            strays += 1
    if strays:
        logger.warning("%d annotations are of images that the file does not have", strays)
    records = list(by_id.values())
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


def count_classes(cfg: CfgNode) -> tuple[int, str]:
    """How many classes the data has, and which, in words: that of DATASETS.TRAIN, or without one
    that of DATASETS.TEST.

    Raises:
        DatasetError: no dataset, or one whose classes cannot be read.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if not names:
        raise DatasetError(
            "MODEL.SMCA.NUM_CLASSES is 0, as many as the data has, but DATASETS.TRAIN and "
            "DATASETS.TEST are empty; name a dataset, or give the number"
        )
    name = names[0]
    if name in COCO and name not in own_datasets(cfg):
        return len(COCO_IDS), f"dataset {name!r}"
    json_file, image_root = dataset_files(cfg, name)
    content = read_annotation_file(name, json_file, image_root)
    classes = list(read_categories(content, refuse(name, json_file)).values())
    return len(classes), f"dataset {name!r}: {shown(classes)}"


def shown(names: Sequence[str], most: int = 20) -> str:
    """The names, or the first of many."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def drop_bad_boxes(records: list[dict], name: str) -> list[dict]:
    """``records`` less the boxes without area or wholly outside their image, which are counted.

    A box partly outside stays as it is; who maps the image clips it.
    """
    reasons: Counter[str] = Counter()
    kept_records = []
    for record in records:
        kept = []
        for annotation in record["annotations"]:
            reason = box_fault(annotation["bbox"], record["height"], record["width"])
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
