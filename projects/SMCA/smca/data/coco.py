"""Datasets in COCO's format: where their files are, what they hold, and what is wrong with them.

A record is Detectron2's standard dict: ``file_name`` (absolute), ``image_id``, ``height``,
``width`` and ``annotations``, each with ``bbox`` (x, y, w, h in pixels), ``bbox_mode``,
``category_id`` (contiguous) and ``iscrowd``. A record of a test set has no ``annotations``.
"""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from fvcore.common.config import CfgNode
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ..errors import DatasetError
from . import coco_format
from .classes import check_count, num_classes, shown, training_labels

logger = logging.getLogger(__name__)

# Annotation file and image folder under $DETECTRON2_DATASETS, by the dataset's name. COCO's are
# where Detectron2 has them; the shapes are drawn when a run first uses them (smca.data.shapes).
_BUILTIN = {
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "coco_2017_test": ("coco/annotations/image_info_test2017.json", "coco/test2017"),
    "coco_2017_test-dev": ("coco/annotations/image_info_test-dev2017.json", "coco/test2017"),
    "shapes_train": ("shapes/annotations/train.json", "shapes/train"),
    "imagenet_train": ("", "imagenet/train"),  # to pre-train
    "shapes_val": ("shapes/annotations/val.json", "shapes/val"),
}
# COCO's 80 classes by id. torchvision lists a name for each id from 0 to 90, used or not.
COCO_CLASSES = {
    number: name
    for number, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
# The part of annotations that are crowds above which a mistake is likelier; of COCO's it is 0.012.
MANY_CROWDS = 0.1


@dataclass(frozen=True)
class CocoDataset:
    """A dataset in COCO's format.

    Attributes:
        name: as in DATASETS.TRAIN and DATASETS.TEST.
        json_file: annotation file.
        image_root: folder of the images.
        class_names: by contiguous index, in the order of the COCO ids.
        category_ids: COCO ids by contiguous index.
        records: one dict an image, sorted by image id.
    """

    name: str
    json_file: str
    image_root: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: list[dict]


def own_datasets(cfg: CfgNode) -> dict[str, tuple[str, str]]:
    """Return annotation file and image folder of DATASETS.COCO_FORMAT, which hide built-in ones."""
    return {name: (json_file, root) for name, json_file, root in cfg.DATASETS.COCO_FORMAT}


def datasets_root() -> str:
    """Return the folder of the built-in datasets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def dataset_files(cfg: CfgNode, name: str) -> tuple[str, str]:
    """Return annotation file and image folder of the dataset with this name.

    Raises:
        DatasetError: the name is neither in DATASETS.COCO_FORMAT nor built in.
    """
    own = own_datasets(cfg)
    if name in own:
        json_file, image_root = map(os.path.expanduser, own[name])
    elif name in _BUILTIN:
        json_file, image_root = (os.path.join(datasets_root(), path) for path in _BUILTIN[name])
    else:
        raise DatasetError(
            f"unknown dataset {name!r}; known are {', '.join([*own, *_BUILTIN])}. A dataset of "
            "your own is named by [name, annotation file, image folder] in DATASETS.COCO_FORMAT"
        )
    return json_file, image_root


def load_coco(
    name: str, json_file: str, image_root: str, *, needs_annotations: bool = True
) -> CocoDataset:
    """Load a dataset from its annotation file.

    Args:
        needs_annotations: refuse a file without a list ``annotations``; otherwise its records have
            none either.

    Raises:
        DatasetError: a path does not exist; the file is not JSON or not in COCO's format; the
            folder has none of the images.
    """
    content = coco_format.read_annotation_file(name, json_file, image_root)
    report = coco_format.refuse(name, json_file)
    categories = coco_format.read_categories(content, report)
    by_id = coco_format.read_images(content, image_root, report)
    if "annotations" not in content and not needs_annotations:
        content = content | {"annotations": []}
        for record in by_id.values():
            del record["annotations"]
    strays = 0
    for _, image_id, annotation in coco_format.read_annotations(content, categories, report):
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


def load_datasets(
    cfg: CfgNode, names: Sequence[str], *, needs_annotations: bool = True
) -> list[CocoDataset]:
    """Load the datasets with these names.

    Args:
        needs_annotations: see :func:`load_coco`.

    Raises:
        DatasetError: see :func:`dataset_files` and :func:`load_coco`.
    """
    return [
        load_coco(name, *dataset_files(cfg, name), needs_annotations=needs_annotations)
        for name in names
    ]


def load_training_datasets(cfg: CfgNode) -> list[CocoDataset]:
    """Load the datasets of DATASETS.TRAIN, with the classes of the first in all of them.

    Raises:
        DatasetError: see :func:`load_datasets`; or the classes are not as many as the model's, or
            not the same in all.
    """
    datasets = load_datasets(cfg, cfg.DATASETS.TRAIN)
    if datasets:
        check_count(cfg, datasets[0].name, datasets[0].class_names)
    labels = training_labels({dataset.name: dataset.class_names for dataset in datasets})
    for dataset in datasets:
        relabel_records(dataset.records, labels[dataset.name])
    return datasets


def relabel_records(records: Sequence[dict], labels: np.ndarray) -> None:
    """Give all annotations of records the class ``labels[category_id]``."""
    if (labels == np.arange(len(labels))).all():
        return
    renamed = labels.tolist()
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = renamed[annotation["category_id"]]


def count_classes(cfg: CfgNode) -> tuple[int, str]:
    """Count the classes of the first dataset in DATASETS.TRAIN, or else in DATASETS.TEST.

    Returns:
        their number, and a text that names the dataset and its classes.

    Raises:
        DatasetError: there is no dataset, or its classes cannot be read.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if not names:
        raise DatasetError(
            "MODEL.SMCA.NUM_CLASSES is 0, as many as the data has, but DATASETS.TRAIN and "
            "DATASETS.TEST are empty; name a dataset, or give the number"
        )
    name = names[0]
    classes = dataset_classes(cfg, name)
    return len(classes), f"dataset {name!r}: {shown(classes)}"


def trained_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the class names of DATASETS.TRAIN, which a model has whose checkpoint has none.

    They are empty if there is no such file, or if it has another number of classes.
    """
    names: Sequence[str] = ()
    for name in cfg.DATASETS.TRAIN[:1]:
        with contextlib.suppress(DatasetError):
            names = dataset_classes(cfg, name)
    return tuple(names) if len(names) == num_classes(cfg) else ()


def dataset_classes(cfg: CfgNode, name: str) -> Sequence[str]:
    """Return the class names of a dataset by its name; COCO's own file is not read.

    Raises:
        DatasetError: see :func:`dataset_files` and
            :func:`~smca.data.coco_format.read_class_names`.
    """
    if name.startswith("coco_") and name in _BUILTIN and name not in own_datasets(cfg):
        return list(COCO_CLASSES.values())
    return coco_format.read_class_names(name, dataset_files(cfg, name)[0])


def usable_records(
    datasets: Collection[tuple[str, Sequence[dict]]], *, filter_empty: bool
) -> list[dict]:
    """Return the records of all datasets together, without boxes that cannot be learned from.

    Args:
        datasets: the name and the records of each of DATASETS.TRAIN.
        filter_empty: also leave out images without annotations other than crowds.

    Raises:
        DatasetError: nothing is left to train on, or nothing but crowds.
    """
    kept: list[dict] = []
    crowds: list[int] = []
    for name, records in datasets:
        usable = drop_bad_boxes(records, name)
        own = [entry["iscrowd"] for record in usable for entry in record["annotations"]]
        if any(own):
            level = logging.WARNING if sum(own) > MANY_CROWDS * len(own) else logging.INFO
            told = "%s: %d of %d annotations are crowds (iscrowd 1), which training leaves out"
            logger.log(level, told, name, sum(own), len(own))
        kept += usable
        crowds += own
    names = ", ".join(name for name, _ in datasets) or "empty"
    if crowds and all(crowds):
        raise DatasetError(
            f"DATASETS.TRAIN ({names}): all {len(crowds)} annotations are crowds (iscrowd 1), "
            "which training leaves out; set iscrowd 0 where a box holds one object"
        )
    if filter_empty:
        number = len(kept)
        kept = [r for r in kept if any(not entry["iscrowd"] for entry in r["annotations"])]
        if len(kept) < number:
            logger.info("left out %d images without annotations", number - len(kept))
    if not kept:
        raise DatasetError(
            f"DATASETS.TRAIN ({names}) has no image to train on; name a dataset with boxes, or set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
        )
    return kept


def drop_bad_boxes(records: Sequence[dict], name: str) -> list[dict]:
    """Return the records without boxes of :func:`~smca.data.coco_format.box_fault`, and warn.

    A box partly outside its image stays as it is; the mapper clips it.
    """
    faults: Counter[str] = Counter()
    kept_records = []
    for record in records:
        height, width = record["height"], record["width"]
        kept = []
        for annotation in record["annotations"]:
            if fault := coco_format.box_fault(annotation["bbox"], height, width):
                faults[fault] += 1
            else:
                kept.append(annotation)
        kept_records.append({**record, "annotations": kept})
    if faults:
        counts = ", ".join(f"{count} {fault}" for fault, count in faults.most_common())
        logger.warning("%s: dropped %d unusable boxes: %s", name, faults.total(), counts)
    return kept_records
