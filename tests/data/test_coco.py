import copy
import json
import logging
import os

import pytest
from PIL import Image

import smca
from smca.data.coco import (
    count_classes,
    dataset_files,
    drop_bad_boxes,
    load_coco,
    load_training_datasets,
    usable_records,
)
from smca.data.coco_format import read_annotation_file
from smca.errors import DatasetError

CONTENT = {
    "images": [
        {"id": 9, "file_name": "b.png", "height": 20, "width": 30},
        {"id": 4, "file_name": "a.png", "height": 40, "width": 10},
    ],
    "categories": [{"id": 7, "name": "star"}, {"id": 2, "name": "cross"}],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 7, "bbox": [1, 2.5, 3, 4], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 2, "bbox": [5, 6, 7, 8], "iscrowd": 1},
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes annotations and images; returns the annotation file and the folder."""

    def write_files(content, name="annotations.json"):
        json_file, folder = tmp_path / name, tmp_path / "images"
        json_file.write_text(content if isinstance(content, str) else json.dumps(content))
        folder.mkdir(exist_ok=True)
        for file_name in ("a.png", "b.png"):
            Image.new("RGB", (1, 1)).save(folder / file_name)
        return str(json_file), str(folder)

    return write_files


def changed(path, value):
    """CONTENT with one entry replaced, or removed where ``value`` is None."""
    content = copy.deepcopy(CONTENT)
    *parents, last = path
    parent = content
    for key in parents:
        parent = parent[key]
    if value is None:
        del parent[last]
    else:
        parent[last] = value
    return content


def config(**coco_format):
    cfg = smca.get_cfg()
    cfg.DATASETS.COCO_FORMAT = [[name, *files] for name, files in coco_format.items()]
    cfg.DATASETS.TRAIN = tuple(coco_format)
    cfg.MODEL.SMCA.NUM_CLASSES = 2
    return cfg


def test_records_are_detectron2s_standard_dicts(write, tmp_path):
    dataset = load_coco("mine", *write(CONTENT))
    assert dataset.class_names == ("cross", "star")
    assert dataset.category_ids == (2, 7)
    first, second = dataset.records
    assert first == {
        "file_name": str(tmp_path / "images" / "a.png"),
        "image_id": 4,
        "height": 40,
        "width": 10,
        "annotations": [],
    }
    assert second["annotations"] == [
        {"bbox": [1, 2.5, 3, 4], "bbox_mode": 1, "category_id": 1, "iscrowd": 0},
        {"bbox": [5, 6, 7, 8], "bbox_mode": 1, "category_id": 0, "iscrowd": 1},
    ]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["annotations"], None, ["no list 'annotations'"]),
        (["images"], [], ["no entries in 'images'"]),
        (["categories"], {"id": 1}, ["categories", "list"]),
        (["categories", 1, "name"], None, ["categories[1]", "'name'"]),
        (["categories", 1, "id"], 7, ["categories[1]", "id 7"]),
        (["images", 1, "id"], 9, ["images[1]", "id 9"]),
        (["images", 0, "width"], None, ["images[0]", "'width'"]),
        (["images", 0, "height"], 0, ["images[0]", "height"]),
        (["annotations", 1, "bbox"], [1, 2, 3], ["annotations[1]", "four numbers"]),
        (["annotations", 1, "bbox"], [1, 2, 3, "4"], ["annotations[1]", "four numbers"]),
        (["annotations", 1, "category_id"], 1, ["annotations[1]", "category_id 1"]),
        (["annotations", 1], "box", ["annotations[1]", "str"]),
    ],
)
def test_what_is_not_coco_is_named_with_its_place(write, path, value, words):
    json_file, folder = write(changed(path, value))
    with pytest.raises(DatasetError) as error:
        load_coco("mine", json_file, folder)
    for word in [*words, "'mine'", json_file]:
        assert word in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '"coco"', "\x00"])
def test_a_file_that_is_no_coco_json_is_refused(write, content):
    json_file, folder = write(content)
    with pytest.raises(DatasetError, match="annotations.json"):
        load_coco("mine", json_file, folder)


def test_missing_paths_are_named(write, tmp_path):
    json_file, folder = write(CONTENT)
    with pytest.raises(DatasetError, match="nothing.json is not an existing file"):
        load_coco("mine", str(tmp_path / "nothing.json"), folder)
    with pytest.raises(DatasetError, match="nowhere is not an existing folder"):
        load_coco("mine", json_file, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"none of its 2 images exists.*a\.png"):
        load_coco("mine", json_file, str(tmp_path / "empty"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_an_annotation_file_that_is_no_file_is_not_waited_for(write, tmp_path, make):
    _, folder = write(CONTENT)
    make(tmp_path / "odd.json")
    for read in (load_coco, read_annotation_file):
        with pytest.raises(DatasetError, match=r"odd\.json is not an existing file"):
            read("mine", str(tmp_path / "odd.json"), folder)


def test_annotations_of_unknown_images_are_counted(write, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = load_coco("mine", *write(changed(["annotations", 0, "image_id"], 77)))
    assert [len(record["annotations"]) for record in dataset.records] == [0, 1]
    assert "1 annotations are of images" in caplog.text


def test_dataset_names(monkeypatch):
    cfg = config(mine=("a.json", "images"))
    assert dataset_files(cfg, "mine") == ("a.json", "images")
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert dataset_files(cfg, "coco_2017_val") == (
        "datasets/coco/annotations/instances_val2017.json",
        "datasets/coco/val2017",
    )
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert dataset_files(cfg, "coco_2017_train")[1] == "/data/coco/train2017"
    assert dataset_files(cfg, "shapes_val")[0] == "/data/shapes/annotations/val.json"
    with pytest.raises(DatasetError) as error:
        dataset_files(cfg, "coco_2071_val")
    for word in ("coco_2071_val", "mine", "coco_2017_val", "DATASETS.COCO_FORMAT"):
        assert word in str(error.value)


def test_bad_boxes_are_dropped_with_one_counted_warning(caplog):
    boxes = {
        "kept": [(0, 0, 1, 1), (-5, -5, 6, 6), (29, 19, 100, 100), (0.5, 0.5, 1e-3, 1e-3)],
        "size": [(1, 1, 0, 5), (1, 1, 5, -2)],
        "outside": [(30, 0, 5, 5), (0, 20, 5, 5), (-5, 0, 5, 5), (0, -9, 5, 5)],
        "not finite": [(float("nan"), 0, 5, 5), (0, 0, float("inf"), 5)],
    }
    annotations = [{"bbox": list(box), "iscrowd": 0} for part in boxes.values() for box in part]
    records = [{"height": 20, "width": 30, "annotations": annotations}] * 2
    with caplog.at_level(logging.WARNING):
        kept = drop_bad_boxes(records, "mine")
    for record in kept:
        assert [tuple(a["bbox"]) for a in record["annotations"]] == boxes["kept"]
    assert len(records[0]["annotations"]) == 12, "the records given stay as they are"
    (message,) = caplog.messages
    for words in ("mine", "16 unusable", "4 of zero or neg", "8 outside", "4 not finite"):
        assert words in message


def test_a_crowd_alone_counts_as_empty():
    crowd, thing = ({"bbox": [1, 1, 5, 5], "iscrowd": iscrowd} for iscrowd in (1, 0))
    image = {"height": 20, "width": 30}
    records = [{**image, "annotations": entries} for entries in ([], [crowd], [crowd, thing])]
    assert usable_records([("mine", records)], filter_empty=True) == records[2:]


@pytest.mark.parametrize(("filter_empty", "image_ids"), [(True, [9, 9]), (False, [4, 9, 4, 9])])
def test_usable_records_are_those_of_all_datasets(write, filter_empty, image_ids):
    records = load_coco("one", *write(CONTENT)).records
    # A dataset that is named twice is used twice.
    kept = usable_records([("one", records)] * 2, filter_empty=filter_empty)
    assert [record["image_id"] for record in kept] == image_ids
    for datasets, names in (([], "empty"), ([("one", []), ("two", [])], "one, two")):
        told = rf"DATASETS\.TRAIN \({names}\) has no image to train on"
        with pytest.raises(DatasetError, match=told):
            usable_records(datasets, filter_empty=filter_empty)


def test_training_classes_must_fit_the_model_and_each_other(write):
    files = write(CONTENT)
    other = write(changed(["categories", 0, "name"], "moon"), "other.json")
    cfg = config(one=files, two=other)
    cfg.MODEL.SMCA.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN = ("one", "two")
    told = "dataset 'two' lacks the classes star of dataset 'one'; give .*'categories'"
    with pytest.raises(DatasetError, match=told):
        load_training_datasets(cfg)
    cfg.DATASETS.TRAIN = ("one",)
    cfg.MODEL.SMCA.NUM_CLASSES = 80
    told = r"NUM_CLASSES is 80, .*2 classes \(cross, star\); set it to 2, or to 0"
    with pytest.raises(DatasetError, match=told):
        load_training_datasets(cfg)


def test_training_files_may_have_their_classes_in_any_order(write):
    files = write(CONTENT)
    content = changed(["categories", 0, "id"], 1)
    content["annotations"][0]["category_id"] = 1
    other = write(content, "other.json")
    cfg = config(one=files, two=other)
    cfg.MODEL.SMCA.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN = ("one", "two")
    one, two = load_training_datasets(cfg)
    assert (one.class_names, two.class_names) == (("cross", "star"), ("star", "cross"))
    assert one.records == two.records


def test_classes_are_counted_in_the_data(write, monkeypatch):
    cfg = config(mine=write(CONTENT))
    assert count_classes(cfg) == (2, "dataset 'mine': cross, star")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("mine",)
    assert count_classes(cfg)[0] == 2
    # Without reading a file, which is not there.
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    assert count_classes(cfg)[0] == 80
    cfg.DATASETS.COCO_FORMAT = [["coco_2017_train", *write(CONTENT)]]
    assert count_classes(cfg)[0] == 2
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    with pytest.raises(DatasetError, match=r"NUM_CLASSES is 0.*DATASETS\.TRAIN and"):
        count_classes(cfg)
    cfg = config(mine=write(changed(["categories", 1, "name"], None)))
    with pytest.raises(DatasetError, match=r"'mine'.*categories\[1\] has no 'name'"):
        count_classes(cfg)
