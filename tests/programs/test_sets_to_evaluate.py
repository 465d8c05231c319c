"""Evaluations that differ from COCO's usual one: nothing to score with, and crowded images."""

import json
from pathlib import Path

import pytest

from smca.data.coco import COCO_CLASSES

NOTHING = "test: there is nothing to score with, it has no annotations"


@pytest.fixture
def test_set(shapes, tmp_path):
    """``test_set("annotations", ...)``: an entry of DATASETS.COCO_FORMAT without these sections."""

    def write(*without, **changes):
        content = json.loads(Path(shapes["val"][0]).read_text())
        content = {key: value for key, value in content.items() if key not in without} | changes
        file = tmp_path / "test.json"
        file.write_text(json.dumps(content))
        return ["test", str(file), shapes["val"][1]]

    return write


@pytest.fixture
def run(engine, config_file, shapes, program):
    """``run("KEY", value, ...)``: trains for two iterations, with further datasets."""

    def train(*opts, extra=(), flags=()):
        entries = [[name, *files] for name, files in shapes.items()] + [list(e) for e in extra]
        short = ("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (1,), "DATASETS.COCO_FORMAT", entries)
        file = config_file(*short, *opts)
        return program("train_net.py", "--engine", engine, *flags, "--config-file", file)

    return train


def detections(folder):
    return json.loads((folder / "coco_instances_results.json").read_text())


@pytest.mark.parametrize("changes", [{}, {"annotations": []}], ids=["no list", "an empty list"])
def test_a_set_without_annotations_is_detected_on(run, test_set, changes, tmp_path):
    entry = test_set("annotations", **changes)
    names = ("DATASETS.TEST", ("test",), "TEST.EVAL_PERIOD", 1)
    output = run(*names, extra=[entry]).done()
    out = tmp_path / "out"
    assert output.count(NOTHING) == 2 and "AP" not in output.partition(NOTHING)[2]
    assert len(detections(out / "inference")) == 6 * 30
    assert "## " not in (out / "results.md").read_text()
    assert "bbox" not in (out / "metrics.json").read_text()
    assert not (out / "model_best.pth").exists()
    (out / "inference/coco_instances_results.json").unlink()
    output = run(*names, "DATASETS.TRAIN", (), extra=[entry], flags=["--eval-only"]).done()
    assert NOTHING in output and len(detections(out / "inference")) == 6 * 30


def test_a_set_without_annotations_stands_before_one_with_them(run, test_set, tmp_path):
    """The best model is that of the first set that has a score."""
    run("DATASETS.TEST", ("test", "val"), extra=[test_set("annotations")]).done()
    out = tmp_path / "out"
    page = (out / "results.md").read_text()
    assert "## val\n" in page and "## test" not in page and "best AP" in page
    assert detections(out / "inference/test") == detections(out / "inference/val")
    scores = json.loads((out / "metrics.json").read_text().splitlines()[-1])
    assert "val/bbox/AP" in scores and "bbox/AP" not in scores
    assert (out / "model_best.pth").exists()


def test_a_set_of_crowds_says_why_it_has_no_score(run, shapes, test_set):
    boxes = json.loads(Path(shapes["val"][0]).read_text())["annotations"]
    entry = test_set(annotations=[{**box, "iscrowd": 1} for box in boxes])
    output = run("DATASETS.TEST", ("test",), extra=[entry]).done()
    assert "test: all annotations are crowds (iscrowd 1), which count as no objects" in output


def test_training_needs_annotations(run, test_set):
    entry = test_set("annotations")
    for train in (("test",), ("train", "test")):
        ended = run("DATASETS.TRAIN", train, extra=[entry])
        assert ended.returncode == 2
        assert f"DatasetError: dataset 'test': {entry[1]} " in ended.last
        assert "annotations" in ended.last


def test_the_checker_knows_sets_to_evaluate_on(shapes, test_set, program):
    _, *entry = test_set("annotations")
    pairs = [("--json", shapes["train"][0], "--images", shapes["train"][1])]
    pairs.append(("--json", entry[0], "--images", entry[1]))
    told = "sets to evaluate on without annotations"
    for order, errors in ((pairs, 0), (pairs[::-1], 1)):
        ended = program("tools/check_dataset.py", *order[0], *order[1])
        assert ended.returncode == errors
        assert (told in ended.output) == (errors == 0)
        assert ("the file has no list 'annotations'" in ended.output) == (errors == 1)


def test_cocos_test_dev_is_known(run, shapes, tmp_path, monkeypatch):
    categories = [{"id": number, "name": name} for number, name in COCO_CLASSES.items()]
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for part, file in (("train", "instances_train2017"), ("val", "image_info_test-dev2017")):
        content = json.loads(Path(shapes[part][0]).read_text()) | {"categories": categories}
        if part == "val":
            del content["annotations"]
        (folder / f"annotations/{file}.json").write_text(json.dumps(content))
    (folder / "train2017").symlink_to(shapes["train"][1])
    (folder / "test2017").symlink_to(shapes["val"][1])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = ("DATASETS.TRAIN", ("coco_2017_train",), "DATASETS.TEST", ("coco_2017_test-dev",))
    output = run(*names, "MODEL.SMCA.NUM_CLASSES", 0).done()
    assert "MODEL.SMCA.NUM_CLASSES: 80, as in dataset 'coco_2017_train'" in output
    assert "coco_2017_test-dev: there is nothing to score with" in output
    found = detections(tmp_path / "out/inference")
    assert len(found) > 0 and {row["category_id"] for row in found} <= COCO_CLASSES.keys()


def test_more_than_100_objects_of_a_class(run, test_set):
    """The key reaches the evaluation, and the log says what counts."""
    content = json.loads(Path(test_set()[1]).read_text())
    first, label = content["images"][0], content["categories"][0]["id"]
    many = [
        {"image_id": first["id"], "category_id": label, "bbox": [5 * x, 5 * y, 4, 4]}
        for x in range(12)
        for y in range(10)
    ]
    entry = test_set(images=[first], annotations=many)
    names = ("DATASETS.TEST", ("test",), "TEST.DETECTIONS_PER_IMAGE", 120)
    told = "test: an image has 120 objects of one class, of which only 100 can count as found: "
    told += "raise TEST.MAX_DETS_PER_IMAGE to 120"
    output = run(*names, extra=[entry]).done()
    assert told in output and "area=   all | maxDets=100" in output
    output = run(*names, "TEST.MAX_DETS_PER_IMAGE", 120, extra=[entry]).done()
    assert "objects of one class" not in output and "area=   all | maxDets=120" in output
