"""Datasets in Detectron2's catalogs, and the records of the datasets that a config names."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

from ..config import pretrains
from ..data.classes import check_count, check_test_classes, num_classes, training_labels
from ..data.coco import (
    dataset_files,
    load_coco,
    own_datasets,
    relabel_records,
    usable_records,
)
from ..data.images import open_image, upright_size
from ..data.patches import dataset_images, image_records
from ..data.shapes import QUICKSTART, SPLITS, missing_shapes, write_shapes_dataset
from ..errors import DatasetError

# What Detectron2 knows of COCO without reading it, such as its classes and their colours.
_DETECTRON2S = dict(MetadataCatalog)


def register_datasets(cfg: CfgNode) -> None:
    """Register DATASETS.COCO_FORMAT and the built-in datasets that ``cfg`` uses.

    Files are read when a dataset is. A name that is already registered is registered anew.

    Raises:
        DatasetError: DATASETS.TRAIN or DATASETS.TEST has an unknown name.
    """
    own = [entry[0] for entry in cfg.DATASETS.COCO_FORMAT]
    for name in dict.fromkeys([*own, *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        try:
            json_file, image_root = dataset_files(cfg, name)
        except DatasetError:
            # Another project may have registered it.
            if name not in DatasetCatalog:
                raise
            continue
        _register(
            name, json_file, image_root, known=None if name in own else _DETECTRON2S.get(name)
        )


def register_unknown_datasets(cfg: CfgNode) -> None:
    """Register DATASETS.COCO_FORMAT and the drawn shapes, unless the catalog has them.

    A dataset of DATASETS.COCO_FORMAT replaces one of its name that has other files.
    """
    own = own_datasets(cfg)
    for name in (*own, *SPLITS):
        files = dataset_files(cfg, name)
        if name in DatasetCatalog:
            known = MetadataCatalog.get(name)
            if name not in own or files == (known.get("json_file"), known.get("image_root")):
                continue
        _register(name, *files)


def _register(name: str, json_file: str, image_root: str, *, known: Metadata | None = None) -> None:
    """Register a dataset; ``known`` is Detectron2's own metadata of it, which stays."""
    DatasetCatalog.pop(name, None)
    DatasetCatalog.register(name, partial(_load, name, json_file, image_root))
    MetadataCatalog.pop(name, None)
    files = {"json_file": json_file, "image_root": image_root}
    if known is not None and files.items() <= vars(known).items():
        MetadataCatalog[name] = known
    else:  # with other files, such as those of another $DETECTRON2_DATASETS
        theirs = {} if known is None else vars(known)
        MetadataCatalog.get(name).set(**{"evaluator_type": "coco", **theirs, **files})


def _load(name: str, json_file: str, image_root: str) -> list[dict]:
    folder = missing_shapes([name])
    if folder and os.path.dirname(image_root) == folder:
        write_shapes_dataset(folder, **QUICKSTART)
    dataset = load_coco(name, json_file, image_root, needs_annotations=False)
    ids = {category: index for index, category in enumerate(dataset.category_ids)}
    # Changed, not replaced: an evaluator may have asked for the metadata before the file is read.
    # What Detectron2 says of COCO's classes gives way to a file that has others.
    vars(MetadataCatalog.get(name)).update(
        thing_classes=list(dataset.class_names), thing_dataset_id_to_contiguous_id=ids
    )
    return dataset.records


def class_names(dataset: str) -> Sequence[str] | None:
    """Return the class names of a registered dataset that has been read, None if it has none."""
    return MetadataCatalog.get(dataset).get("thing_classes")


def check_datasets(cfg: CfgNode) -> Sequence[str] | None:
    """Check the classes of the datasets of ``cfg``, which have been read.

    Returns:
        the class names of DATASETS.TRAIN; None if it is empty, or its dataset has no names.

    Raises:
        DatasetError: the classes are not as many as the model's, or a test set has others.
    """
    trained = class_names(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None
    if trained:
        check_count(cfg, cfg.DATASETS.TRAIN[0], trained)
    for name in cfg.DATASETS.TEST:
        names = class_names(name)
        if names and trained:
            check_test_classes(name, names, trained)
        elif names:
            check_count(cfg, name, names)
    return trained


def dataset_records(cfg: CfgNode, name: str) -> list[dict]:
    """Return the records of a registered dataset for an evaluation.

    Raises:
        DatasetError: see :func:`~smca.data.coco.load_coco`; or records of another project cannot be
            used.
    """
    return _numbered(name, _complete(name, DatasetCatalog.get(name), num_classes(cfg)))


def training_records(
    *, names: str | Sequence[str], filter_empty: bool = True, num_classes: int | None = None
) -> list[dict]:
    """Return the records of registered datasets, without boxes that cannot be learned from.

    Their annotations have the box alone, as x, y, w, h, its class and ``iscrowd``: datasets of
    other projects may differ. All have the classes of the first dataset, which others have in any
    order.

    Args:
        names: of one dataset or several.
        filter_empty: also leave out images without annotations.
        num_classes: of datasets without class names; None: not known.

    Raises:
        DatasetError: see :func:`~smca.data.coco.load_coco`; records of another project cannot be
            used; the datasets have different classes; or nothing is left to train on.
    """
    datasets: list[tuple[str, list[dict]]] = []
    for name in [names] if isinstance(names, str) else names:
        records = _complete(name, DatasetCatalog.get(name), num_classes)
        if records and not any("annotations" in record for record in records):
            file = MetadataCatalog.get(name).get("json_file")
            who = f"{file} has" if file else "its records have"
            raise DatasetError(f"dataset {name!r}: {who} no annotations to train on")
        datasets.append((name, [{"annotations": [], **record} for record in records]))
    labels = training_labels({name: class_names(name) for name, _ in datasets if class_names(name)})
    for name, records in datasets:
        if name in labels:
            relabel_records(records, labels[name])
    return usable_records(datasets, filter_empty=filter_empty)


def records_to_train_on(cfg: CfgNode) -> list[dict]:
    """Return the records of DATASETS.TRAIN; to pre-train, all images of its folders.

    Raises:
        DatasetError: see :func:`training_records` and :func:`~smca.data.patches.image_records`.
    """
    if pretrains(cfg):
        return image_records(cfg, pretraining_images)
    return training_records(
        names=cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        num_classes=num_classes(cfg),
    )


def pretraining_images(cfg: CfgNode, name: str) -> list[str]:
    """Return the image files of a dataset as :func:`~smca.data.patches.dataset_images` does.

    Those of a dataset that another project has registered are what its records name.
    """
    try:
        dataset_files(cfg, name)
    except DatasetError:
        if name not in DatasetCatalog:
            raise
        return [record["file_name"] for record in DatasetCatalog.get(name)]
    return dataset_images(cfg, name)


def coco_content(name: str) -> dict:
    """Return a registered dataset in COCO's format, as Detectron2 converts it.

    Raises:
        DatasetError: the dataset has no class names, or its records cannot be used.
    """
    records, loader = DatasetCatalog.get(name), DatasetCatalog[name]
    if not class_names(name):
        raise DatasetError(
            f"dataset {name!r} has no class names; give them to MetadataCatalog.get({name!r}) as "
            "thing_classes"
        )
    # With all of their annotations, whose polygons say what the area is.
    complete = [
        {**whole, "annotations": record.get("annotations", ())}
        for whole, record in zip(_numbered(name, _complete(name, records)), records, strict=True)
    ]
    DatasetCatalog[name] = lambda: complete
    try:
        return convert_to_coco_dict(name)
    finally:
        DatasetCatalog[name] = loader


def _complete(name: str, records: Sequence[dict], num_classes: int | None = None) -> list[dict]:
    """Return Detectron2's standard dicts with their sizes, and plain boxes of known classes."""
    if names := class_names(name):
        num_classes = len(names)
    complete = []
    for number, record in enumerate(records):
        try:
            if not record.get("height") or not record.get("width"):
                with open_image(record["file_name"]) as image:
                    width, height = upright_size(image)
                record = record | {"width": width, "height": height}
            if "annotations" in record:
                boxes = [_plain(entry, num_classes) for entry in record["annotations"]]
                record = record | {"annotations": boxes}
        except Exception as error:
            image = record.get("file_name", f"record {number}")
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise DatasetError(f"dataset {name!r}: {image}: {reason}") from error
        complete.append(record)
    return complete


def _plain(entry: dict, num_classes: int | None) -> dict:
    bbox = BoxMode.convert(list(entry["bbox"]), BoxMode(entry["bbox_mode"]), BoxMode.XYWH_ABS)
    category = entry["category_id"]
    if num_classes is not None and category not in range(num_classes):
        raise ValueError(
            f"an object has category_id {category!r}; it must be the index of one of the "
            f"{num_classes} classes, from 0 to {num_classes - 1}"
        )
    return {
        "bbox": list(bbox),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": entry.get("iscrowd", 0),
    }


def _numbered(name: str, records: Sequence[dict]) -> list[dict]:
    """Return records with an ``image_id``, which is their place where they have none."""
    if "json_file" in vars(MetadataCatalog.get(name)) and not all("image_id" in r for r in records):
        raise DatasetError(f"dataset {name!r}: a record has no image_id, as its json_file has")
    numbered = [{"image_id": number, **record} for number, record in enumerate(records)]
    twice = [i for i, n in Counter(record["image_id"] for record in numbered).items() if n > 1]
    if twice:
        raise DatasetError(f"dataset {name!r}: several records have image_id {twice[0]!r}")
    return numbered
