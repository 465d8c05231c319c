"""Datasets in Detectron2's catalogs, and the records of the datasets that a config names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..data.coco import check_classes, dataset_files, drop_bad_boxes, drop_empty, load_coco
from ..errors import DatasetError


def register_datasets(cfg: CfgNode) -> None:
    """Register DATASETS.COCO_FORMAT, and the COCO splits that ``cfg`` uses.

    Files are read when a dataset is. A name that is registered already is registered anew.

    Raises:
        DatasetError: DATASETS.TRAIN or DATASETS.TEST has a name that nobody knows.
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
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        DatasetCatalog.register(name, partial(_load, name, json_file, image_root))
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
        MetadataCatalog.get(name).set(
            json_file=json_file, image_root=image_root, evaluator_type="coco"
        )


def _load(name: str, json_file: str, image_root: str) -> list[dict]:
    dataset = load_coco(name, json_file, image_root)
    # In place: an evaluator may have asked for the metadata before the file is read.
    MetadataCatalog.get(name).set(
        thing_classes=list(dataset.class_names),
        thing_dataset_id_to_contiguous_id={
            category: index for index, category in enumerate(dataset.category_ids)
        },
    )
    return dataset.records


def dataset_records(cfg: CfgNode, names: Sequence[str]) -> dict[str, list[dict]]:
    """The records of registered datasets, by name.

    Raises:
        DatasetError: a file that is missing or not in COCO's format; classes that are not
            as many as the model's, or not those of the other datasets.
    """
    records = {name: DatasetCatalog.get(name) for name in names}
    # With those of the datasets that have been read before: training's and evaluation's agree.
    seen = [name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if name in MetadataCatalog]
    classes = {
        name: MetadataCatalog.get(name).get("thing_classes")
        for name in dict.fromkeys([*names, *seen])
    }
    check_classes(cfg, {name: known for name, known in classes.items() if known})
    return records


def training_records(cfg: CfgNode) -> list[dict]:
    """The records of all DATASETS.TRAIN, without boxes that cannot be learned from.

    Raises:
        DatasetError: as :func:`dataset_records`, or nothing is left to train on.
    """
    records = dataset_records(cfg, cfg.DATASETS.TRAIN)
    return usable_records(records, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


def usable_records(datasets: Mapping[str, list[dict]], *, filter_empty: bool) -> list[dict]:
    """The records of all ``datasets`` together, without boxes that cannot be learned from.

    Args:
        datasets: records by the dataset's name.
        filter_empty: leave images without annotations out, too.

    Raises:
        DatasetError: nothing is left to train on.
    """
    kept = []
    for name, records in datasets.items():
        kept += drop_bad_boxes([_plain(record) for record in records], name)
    if filter_empty:
        kept = drop_empty(kept)
    if not kept:
        raise DatasetError(
            f"DATASETS.TRAIN ({', '.join(datasets) or 'empty'}) has no image to train "
            "on; name a dataset with boxes, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
        )
    return kept


def _plain(record: dict) -> dict:
    """A record with boxes only, as x, y, w, h: other projects' datasets may have more."""
    return {
        **record,
        "annotations": [
            {
                "bbox": list(
                    BoxMode.convert(entry["bbox"], BoxMode(entry["bbox_mode"]), BoxMode.XYWH_ABS)
                ),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": entry["category_id"],
                "iscrowd": entry.get("iscrowd", 0),
            }
            for entry in record.get("annotations", ())
        ],
    }
