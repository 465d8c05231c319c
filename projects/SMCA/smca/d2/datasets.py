"""Datasets in Detectron2's catalogs, and the records of the datasets that a config names."""

import os
from collections.abc import Sequence
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..data.coco import check_classes, dataset_files, load_coco, own_datasets, usable_records
from ..data.shapes import QUICKSTART, SPLITS, missing_shapes, write_shapes_dataset
from ..errors import DatasetError


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
        _register(name, json_file, image_root)


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


def _register(name: str, json_file: str, image_root: str) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, partial(_load, name, json_file, image_root))
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco")


def _load(name: str, json_file: str, image_root: str) -> list[dict]:
    folder = missing_shapes([name])
    if folder and os.path.dirname(image_root) == folder:
        write_shapes_dataset(folder, **QUICKSTART)
    dataset = load_coco(name, json_file, image_root, needs_annotations=False)
    # Changed, not replaced: an evaluator may have asked for the metadata before the file is read.
    MetadataCatalog.get(name).set(
        thing_classes=list(dataset.class_names),
        thing_dataset_id_to_contiguous_id={
            category: index for index, category in enumerate(dataset.category_ids)
        },
    )
    return dataset.records


def check_datasets(cfg: CfgNode) -> None:
    """Check the classes of the datasets of ``cfg`` that have been read so far.

    Raises:
        DatasetError: they are not as many as the model's, or not the same in all.
    """
    known = [name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if name in MetadataCatalog]
    classes = {name: MetadataCatalog.get(name).get("thing_classes") for name in known}
    check_classes(cfg, {name: names for name, names in classes.items() if names})


def dataset_records(cfg: CfgNode, name: str) -> list[dict]:
    """Return the records of a registered dataset, after checking its classes.

    Raises:
        DatasetError: see :func:`~smca.data.coco.load_coco` and :func:`check_datasets`.
    """
    records = DatasetCatalog.get(name)
    check_datasets(cfg)
    return records


def training_records(*, names: str | Sequence[str], filter_empty: bool = True) -> list[dict]:
    """Return the records of registered datasets, without boxes that cannot be learned from.

    Their annotations have the box alone, as x, y, w, h, its class and ``iscrowd``: datasets of
    other projects may differ.

    Args:
        names: of one dataset or several.
        filter_empty: also leave out images without annotations.

    Raises:
        DatasetError: see :func:`~smca.data.coco.load_coco`; or nothing is left to train on.
    """
    datasets = []
    for name in [names] if isinstance(names, str) else names:
        records = [
            {**record, "annotations": [_plain(entry) for entry in record.get("annotations", ())]}
            for record in DatasetCatalog.get(name)
        ]
        datasets.append((name, records))
    return usable_records(datasets, filter_empty=filter_empty)


def _plain(entry: dict) -> dict:
    bbox = BoxMode.convert(entry["bbox"], BoxMode(entry["bbox_mode"]), BoxMode.XYWH_ABS)
    return {
        "bbox": list(bbox),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": entry["category_id"],
        "iscrowd": entry.get("iscrowd", 0),
    }
