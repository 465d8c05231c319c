"""Datasets in Detectron2's catalogs."""

import json
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.structures import BoxMode  # noqa: E402

from smca.d2 import register_datasets  # noqa: E402
from smca.d2.datasets import dataset_records, training_records  # noqa: E402
from smca.d2.trainer import Trainer  # noqa: E402
from smca.errors import DatasetError  # noqa: E402


def test_records_and_metadata(d2_config, shapes):
    cfg = d2_config()
    records = dataset_records(cfg, "val")
    content = json.loads(Path(shapes["val"][0]).read_text())
    assert [record["image_id"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])
    metadata = MetadataCatalog.get("val")
    assert metadata.thing_classes == [category["name"] for category in content["categories"]]
    assert metadata.json_file == shapes["val"][0]
    assert metadata.evaluator_type == "coco"


def test_a_name_can_get_other_files(d2_config, shapes, tmp_path):
    d2_config()
    content = json.loads(Path(shapes["val"][0]).read_text())
    for category in content["categories"]:
        category["name"] += " again"
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    cfg = d2_config("DATASETS.COCO_FORMAT", [[n, str(path), shapes["val"][1]] for n in shapes])
    dataset_records(cfg, "val")
    assert MetadataCatalog.get("val").thing_classes[0].endswith(" again")


def test_missing_coco_names_the_path_and_the_variable(d2_config, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    cfg = d2_config("DATASETS.TRAIN", ("coco_2017_train",))
    path = "/nowhere/coco/annotations/instances_train2017.json"
    with pytest.raises(DatasetError, match=rf"{path}.*DETECTRON2_DATASETS"):
        training_records(names=cfg.DATASETS.TRAIN)


def test_an_unknown_name_is_refused(d2_config):
    with pytest.raises(DatasetError, match="'trian'"):
        d2_config("DATASETS.TRAIN", ("trian",))


def test_another_number_of_classes_is_refused(d2_config):
    cfg = d2_config("MODEL.SMCA.NUM_CLASSES", 2)
    with pytest.raises(DatasetError, match="NUM_CLASSES is 2, but dataset 'train' has 3"):
        Trainer(cfg)


def test_a_dataset_of_another_project(d2_config):
    """In corners instead of sizes, with polygons, without the key for crowds."""
    box = {"bbox": [1, 2, 11, 22], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": "a.png", "image_id": 1, "height": 30, "width": 30}
    records = [
        record | {"annotations": [box | {"segmentation": [[1, 2, 11, 2, 11, 22]]}]},
        record | {"annotations": [box | {"bbox": [1, 2, 1, 22]}]},
    ]
    DatasetCatalog.register("theirs", lambda: records)
    try:
        cfg = d2_config("DATASETS.TRAIN", ("theirs",))
        register_datasets(cfg)
        (kept,) = training_records(names="theirs", filter_empty=True)
        assert kept["annotations"] == [
            {"bbox": [1, 2, 10, 20], "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
        ]
    finally:
        DatasetCatalog.remove("theirs")
