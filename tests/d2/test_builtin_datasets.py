"""What Detectron2 knows of COCO stays, whatever a config names."""

import json
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402

from smca.d2 import add_smca_config, register_datasets  # noqa: E402
from smca.d2.datasets import dataset_records  # noqa: E402
from smca.data.coco import COCO_CLASSES  # noqa: E402

NAME = "coco_2017_val"


def register(own=()):
    registered(own)
    return MetadataCatalog.get(NAME)


def registered(own=()):
    cfg = get_cfg()
    add_smca_config(cfg)
    cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = (NAME, "coco_2017_test-dev"), ("coco_2017_train",)
    cfg.DATASETS.COCO_FORMAT = [list(own)] if own else []
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SMCA.NUM_CLASSES = "SMCA", 3
    register_datasets(cfg)
    return cfg


def described(metadata):
    return {key: value for key, value in vars(metadata).items() if key not in PLACES}


PLACES = ("json_file", "image_root")


@pytest.fixture
def coco(tmp_path, shapes):
    """A folder with an annotation file of COCO's classes."""
    folder = tmp_path / "coco/annotations"
    folder.mkdir(parents=True)
    content = json.loads(Path(shapes["val"][0]).read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in COCO_CLASSES.items()]
    (folder / "instances_val2017.json").write_text(json.dumps(content))
    (tmp_path / "coco/val2017").symlink_to(shapes["val"][1])
    yield tmp_path
    register()


def test_metadata_of_coco_stays_as_it_is(coco, monkeypatch, shapes):
    before = MetadataCatalog.get(NAME)
    expected = described(before)
    assert {"thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"} <= set(expected)
    assert register() is before and described(before) == expected

    monkeypatch.setenv("DETECTRON2_DATASETS", str(coco))
    for _ in range(2):
        found = register()
        assert described(found) == expected
        assert found.json_file == f"{coco}/coco/annotations/instances_val2017.json"
        assert [record["image_id"] for record in DatasetCatalog.get(NAME)] == [1, 2, 3, 4, 5, 6]
        assert described(found) == expected and MetadataCatalog.get(NAME) is found
        assert len(MetadataCatalog.get("coco_2017_test-dev").thing_classes) == 80

        # A dataset of the config hides it until the next config.
        hidden = register([NAME, *shapes["val"]])
        DatasetCatalog.get(NAME)
        assert hidden.thing_classes == ["circle", "rectangle", "triangle"]
        assert not hasattr(hidden, "thing_colors")

    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert register() is before and described(before) == expected


def test_a_file_with_other_classes_says_what_the_classes_are(coco, monkeypatch, shapes):
    (coco / "coco/annotations/instances_val2017.json").write_text(
        Path(shapes["val"][0]).read_text()
    )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(coco))
    cfg = registered()
    assert len(dataset_records(cfg, NAME)) == 6
    found = MetadataCatalog.get(NAME)
    assert found.thing_classes == ["circle", "rectangle", "triangle"]
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert len(register().thing_classes) == 80
