"""Detectron2's evaluator, of annotation files that leave things out."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.structures import Boxes, Instances  # noqa: E402

from smca.d2.datasets import dataset_records  # noqa: E402
from smca.d2.evaluation import CocoEvaluator  # noqa: E402
from smca.data.coco import load_datasets  # noqa: E402
from smca.evaluation.native import evaluate  # noqa: E402
from smca.evaluation.scoring import tabulate  # noqa: E402
from smca.structures import Detections  # noqa: E402


def halved(record):
    """Every object, a tenth too wide; the second half of the images has no detection."""
    objects = record["annotations"] if record["image_id"] <= 3 else []
    boxes = torch.tensor([entry["bbox"] for entry in objects]).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] * torch.tensor([1.1, 1])], dim=1)
    labels = torch.tensor([entry["category_id"] for entry in objects], dtype=torch.int64)
    return Detections(boxes=boxes, scores=torch.linspace(0.9, 0.5, len(boxes)), labels=labels)


@pytest.fixture
def evaluated(d2_config, shapes, tmp_path):
    """``evaluated(*keys)``: the scores of both hosts where no annotation has these keys."""

    def run(*keys, by_class=True):
        content = json.loads(Path(shapes["val"][0]).read_text())
        for annotation in content["annotations"]:
            for key in keys:
                annotation.pop(key, None)
        file = tmp_path / "changed.json"
        file.write_text(json.dumps(content))
        entry = ["val", str(file), shapes["val"][1]]
        cfg = d2_config("DATASETS.COCO_FORMAT", [entry], "DATASETS.TRAIN", ("val",))
        (dataset,) = load_datasets(cfg, ["val"])
        found = {record["image_id"]: halved(record) for record in dataset.records}
        # As in programs that read the dataset only now.
        evaluator = CocoEvaluator("val", output_dir=str(tmp_path / "d2"), by_class=by_class)
        records = dataset_records(cfg, ["val"])["val"]
        evaluator.reset()
        for record in records:
            instances = Instances((record["height"], record["width"]))
            detections = found[record["image_id"]]
            instances.pred_boxes = Boxes(detections.boxes)
            instances.scores = detections.scores
            instances.pred_classes = detections.labels
            evaluator.process([record], [{"instances": instances}])
        theirs = evaluator.evaluate()["bbox"]
        rows = tabulate(found.items())
        ours = evaluate(rows, dataset, str(tmp_path / "native"), by_class=by_class)
        return theirs, ours["bbox"]

    return run


@pytest.mark.parametrize("keys", [(), ("id",), ("id", "area", "iscrowd")], ids=len)
def test_both_hosts_add_what_annotations_lack(evaluated, keys):
    whole, _ = evaluated()
    theirs, ours = evaluated(*keys)
    assert 10 < theirs["AP"] < 90
    for found in (theirs, ours):
        assert found == pytest.approx(whole, abs=1e-9, nan_ok=True)


def test_both_hosts_may_leave_classes_out(evaluated):
    whole, _ = evaluated()
    expected = {name: value for name, value in whole.items() if not name.startswith("AP-")}
    assert len(expected) == 6 < len(whole)
    for found in evaluated(by_class=False):
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_both_hosts_write_the_same_files(evaluated, tmp_path):
    evaluated()
    written = [
        {path.name: json.loads(path.read_text()) for path in (tmp_path / host).iterdir()}
        for host in ("d2", "native")
    ]
    assert list(written[0]) == ["coco_instances_results.json"]
    assert written[0] == written[1]
