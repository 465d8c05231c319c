"""Images with more objects of a class than COCO counts detections."""

import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smca.evaluation.detections import ROW, coco_results
from smca.evaluation.evaluate import evaluate, read_ground_truth

COCOS = [1, 10]  # detections whose recall COCO tells besides
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl"]


def content(boxes, labels):
    """A dataset of one image for each list of boxes (x, y, w, h) and their labels."""
    entries = [
        {"image_id": i, "category_id": int(label) + 1, "bbox": box.tolist(), "iscrowd": 0}
        for i, image in enumerate(boxes)
        for box, label in zip(image, labels[i], strict=True)
    ]
    return {
        "images": [{"id": i} for i in range(len(boxes))],
        "categories": [{"id": 1, "name": "pill"}, {"id": 2, "name": "dot"}],
        "annotations": [
            {**entry, "id": number, "area": math.prod(entry["bbox"][2:])}
            for number, entry in enumerate(entries, start=1)
        ],
    }


def detections(boxes, labels, scores):
    rows = np.zeros(sum(map(len, boxes)), dtype=ROW)
    rows["image_id"] = np.repeat(range(len(boxes)), [len(image) for image in boxes])
    rows["box"], rows["label"] = np.concatenate(boxes), np.concatenate(labels)
    rows["score"] = scores
    return rows


def ours(rows, dataset, folder, **options):
    truth = read_ground_truth("dense", "its content", dataset)
    return evaluate("dense", rows, truth, str(folder), by_class=False, **options)["bbox"]


def pycocotools(rows, dataset, limit):
    """Its figures at the largest limit; its own summary knows 100 alone."""
    truth = COCO()
    truth.dataset = dataset
    truth.createIndex()
    scores = COCOeval(truth, truth.loadRes(coco_results(rows, [1, 2])), "bbox")
    scores.params.maxDets = [*COCOS, limit]
    scores.evaluate(), scores.accumulate()
    precision, recall = (scores.eval[name][..., -1] for name in ("precision", "recall"))
    parts = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    parts += [precision[..., area] for area in (1, 2, 3)]
    parts += [recall[..., area] for area in range(4)]
    means = [100 * part[part > -1].mean() if (part > -1).any() else math.nan for part in parts]
    return dict(zip(METRICS, means, strict=True))


@pytest.mark.parametrize(("limit", "score"), [(100, 100 / 3), (300, 100), (1000, 100)])
def test_all_of_300_objects_can_be_found(limit, score, tmp_path, caplog):
    box = np.array([[26 * x + 2, 29 * y + 2, 20, 20] for y in range(20) for x in range(15)])
    rows = detections([box], [np.zeros(300)], np.linspace(0.99, 0.9, 300))
    dataset = content([box], [np.zeros(300)])
    found = ours(rows, dataset, tmp_path, max_dets_per_image=limit)
    # Precision is 1 at each of COCO's 101 levels of recall that is reached.
    assert found["AP"] == found["AP50"] == pytest.approx(100 if score == 100 else 100 * 34 / 101)
    assert found["AR"] == found["ARs"] == pytest.approx(score)
    message = "an image has 300 objects of one class, of which only 100 can count as found"
    assert (message in caplog.text) == (limit == 100)
    if limit == 100:
        assert "TEST.MAX_DETS_PER_IMAGE to 300" in caplog.text


@pytest.mark.parametrize("limit", [10, 40, 100, 250])
def test_every_limit_scores_as_in_pycocotools(limit, tmp_path):
    rng = np.random.default_rng(limit)
    boxes = [rng.uniform([0, 0, 5, 5], [600, 600, 120, 120], (n, 4)) for n in (0, 3, 60, 170)]
    labels = [rng.integers(2, size=len(image)) for image in boxes]
    near = [rng.normal(image.repeat(2, axis=0), 2.0) for image in boxes]
    rows = detections(near, [each.repeat(2) for each in labels], rng.random(466).round(2))
    dataset = content(boxes, labels)
    expected = pycocotools(rows, dataset, limit)
    found = ours(rows, dataset, tmp_path, max_dets_per_image=limit)
    assert list(found) == METRICS
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert 5 < found["AP"] < found["AR"] < 95


def test_crowds_are_no_objects_of_the_warning(tmp_path, caplog):
    box = np.tile([[1.0, 1, 9, 9]], (120, 1))
    dataset = content([box], [np.zeros(120)])
    for entry in dataset["annotations"][20:]:
        entry["iscrowd"] = 1
    ours(detections([box], [np.zeros(120)], 0.5), dataset, tmp_path)
    assert "objects of one class" not in caplog.text
