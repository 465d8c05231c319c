import json
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scored import scored

from smca.data.coco import load_coco
from smca.errors import DatasetError
from smca.evaluation import detections as module
from smca.evaluation.detections import RESULTS_FILE, tabulate
from smca.evaluation.evaluate import read_ground_truth, score_classes
from smca.structures import Detections

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl"]
BOXES = {  # image id: (x, y, w, h, COCO id)
    1: [(10, 10, 20, 20, 3), (50, 50, 40, 40, 7)],
    2: [(5, 5, 100, 100, 7)],
    3: [],
}


def write(folder, boxes, names):
    """A dataset on disk whose annotations have ids from 0, no area and no iscrowd."""
    Image.new("RGB", (128, 128)).save(folder / "image.png")
    image = {"file_name": "image.png", "width": 128, "height": 128}
    annotations = [
        {"image_id": image_id, "bbox": list(box[:4]), "category_id": box[4]}
        for image_id, image_boxes in boxes.items()
        for box in image_boxes
    ]
    content = {
        "images": [{"id": image_id, **image} for image_id in boxes],
        "categories": [{"id": category, "name": name} for category, name in names.items()],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations)],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return load_coco("mine", str(folder / "a.json"), str(folder))


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path, BOXES, {7: "star", 3: "cross", 9: "moon"})


def detections(rows):
    """From (x, y, w, h, label, score) rows."""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    boxes = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], dim=1)
    return Detections(boxes=boxes, scores=rows[:, 5], labels=rows[:, 4].long())


def perfect():
    """Labels are contiguous: cross (COCO id 3) is 0, star (7) is 1."""
    yield 1, detections([(10, 10, 20, 20, 0, 0.9), (50, 50, 40, 40, 1, 0.8)])
    yield 2, detections([(5, 5, 100, 100, 1, 0.7)])
    yield 3, detections([])


def test_perfect_detections_have_ap_100(dataset, tmp_path):
    scores = scored(perfect(), dataset, tmp_path / "out")
    assert math.isnan(scores.pop("AP-moon")), "a class without objects"
    assert set(scores) == {*METRICS, "AP-cross", "AP-star"}
    for value in scores.values():
        assert value == pytest.approx(100)


def test_classes_may_be_left_out(dataset, tmp_path):
    scores = scored(perfect(), dataset, tmp_path / "out", by_class=False)
    assert list(scores) == METRICS
    assert scores["AP"] == pytest.approx(100)


def test_the_results_file_has_coco_ids_and_boxes(dataset, tmp_path):
    scored(perfect(), dataset, tmp_path / "out")
    rows = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert len(rows) == 3
    assert rows[1] == {
        "image_id": 1,
        "category_id": 7,
        "bbox": [50, 50, 40, 40],
        "score": pytest.approx(0.8),
    }


def test_precision_is_averaged_as_coco_says(dataset, tmp_path):
    """Worked by hand. Star: a false hit at 0.95, then a box of IoU 0.8, then a perfect one.

    Up to the threshold 0.8 precision is 1/2 at the first object and 2/3 at the second, made
    monotonous 2/3; above it, the first becomes false and leaves 1/3 for half of the recall levels
    (51 of 101). Cross is missed.
    """
    found = [
        (1, detections([(0, 100, 9, 9, 1, 0.95), (50, 50, 40, 32, 1, 0.9)])),
        (2, detections([(5, 5, 100, 100, 1, 0.3)])),
    ]
    scores = scored(found, dataset, tmp_path)
    star = (7 * 2 / 3 + 3 * 51 / 101 / 3) / 10 * 100
    assert scores["AP-star"] == pytest.approx(star)
    assert scores["AP-cross"] == 0
    assert scores["AP"] == pytest.approx(star / 2)
    assert scores["AP50"] == pytest.approx(100 / 3)


def test_classes_apart_score_as_pycocotools_does_in_one_go(tmp_path, monkeypatch):
    """Classes without detections, without objects and without either are among them; so are
    crowds, and an object of an image that the file does not have.
    """
    monkeypatch.setattr(module, "_WRITTEN_AT_ONCE", 60)
    rng = np.random.default_rng(0)
    names = {3: "a", 5: "b", 7: "c", 8: "no detections", 9: "no objects", 12: "neither"}
    boxes = {
        image: [
            (*rng.uniform(0, 30, 2).tolist(), *rng.uniform(8, 98, 2).tolist(), category)
            for category in rng.choice([3, 5, 7, 8], rng.integers(4)).tolist()
        ]
        for image in range(20)
    }
    write(tmp_path, boxes, names)
    file = tmp_path / "a.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"][::5]:
        annotation["iscrowd"] = 1
    content["annotations"].append(dict(content["annotations"][0], image_id=99))
    file.write_text(json.dumps(content))
    dataset = load_coco("mine", str(file), str(tmp_path))
    found = []
    for image, objects in boxes.items():
        near = [(*rng.normal(box[:4], 3), rng.choice([0, 1, 2, 4]), 0) for box in objects * 3]
        rows = np.array(near + [(1, 1, 50, 50, 0, 0)] * (image % 3))
        if len(rows):
            rows[:, 5] = rng.random(len(rows)).round(1)  # ties
            found.append((image, detections(rows)))

    written = tmp_path / RESULTS_FILE
    results = scored(found, dataset, tmp_path)
    rows = tabulate(found)
    scores = score_classes(rows, read_ground_truth("mine", str(file)))
    assert len(rows) > 120

    ground_truth = COCO()
    ground_truth.dataset = content
    for number, annotation in enumerate(content["annotations"], start=1):
        w, h = annotation["bbox"][2:]
        annotation.update(id=number, area=w * h, iscrowd=annotation.get("iscrowd", 0))
    ground_truth.createIndex()
    rows = json.loads(written.read_text())
    assert json.dumps(rows) == written.read_text()
    plain = COCOeval(ground_truth, ground_truth.loadRes(rows), "bbox")
    plain.evaluate(), plain.accumulate(), plain.summarize()
    np.testing.assert_allclose(scores.stats, plain.stats, rtol=1e-15)
    for name in ("precision", "recall"):
        np.testing.assert_allclose(scores.eval[name], plain.eval[name], rtol=1e-15)
    assert 5 < results["AP"] < 95 and results["AP"] == pytest.approx(plain.stats[0] * 100)


def test_no_detection_at_all_is_nan(dataset, tmp_path, caplog):
    for found in ([], [(1, detections([]))]):
        scores = scored(found, dataset, tmp_path)
        assert list(scores) == METRICS
        assert all(math.isnan(value) for value in scores.values())
        assert json.loads((tmp_path / RESULTS_FILE).read_text()) == []
    assert "no detections" in caplog.text


def test_one_class_has_no_ap_of_its_own(tmp_path):
    dataset = write(tmp_path, {1: [(1, 1, 50, 50, 4)]}, {4: "thing"})
    scores = scored([(1, detections([(1, 1, 50, 50, 0, 0.5)]))], dataset, tmp_path)
    assert list(scores) == METRICS
    assert [key for key, value in scores.items() if math.isnan(value)] == [
        "APs",
        "APl",
        "ARs",
        "ARl",
    ]


def test_scores_that_are_not_numbers_are_refused(dataset, tmp_path):
    with pytest.raises(FloatingPointError, match="weights are not finite"):
        scored([(1, detections([(1, 1, 5, 5, 0, math.nan)]))], dataset, tmp_path)


def test_a_class_the_dataset_lacks_is_refused(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"image 2 .*class 5.*NUM_CLASSES must be 3"):
        scored([(2, detections([(1, 1, 5, 5, 5, 0.5)]))], dataset, tmp_path)


def test_the_scores_go_to_the_log_alone(dataset, tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO):
        scored(perfect(), dataset, tmp_path)
    assert capsys.readouterr().out == ""
    assert "Average Precision  (AP) @[ IoU=0.50:0.95" in caplog.text
