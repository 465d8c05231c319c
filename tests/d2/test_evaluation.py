"""Detectron2's evaluator, of annotation files that leave things out."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.evaluation import (  # noqa: E402
    COCOEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
)
from detectron2.structures import Boxes, Instances  # noqa: E402
from scored import scored  # noqa: E402

from smca.d2.datasets import dataset_records  # noqa: E402
from smca.d2.evaluation import CocoEvaluator  # noqa: E402
from smca.data.coco import load_datasets  # noqa: E402
from smca.structures import Detections  # noqa: E402


def halved(record):
    """Every object, a tenth too wide; the second half of the images has no detection."""
    objects = record["annotations"] if record["image_id"] <= 3 else []
    boxes = torch.tensor([entry["bbox"] for entry in objects]).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] * torch.tensor([1.1, 1])], dim=1)
    labels = torch.tensor([entry["category_id"] for entry in objects], dtype=torch.int64)
    return Detections(boxes=boxes, scores=torch.linspace(0.9, 0.5, len(boxes)), labels=labels)


def as_instances(record):
    """The same, as Detectron2's models give it."""
    instances, found = Instances((record["height"], record["width"])), halved(record)
    instances.pred_boxes, instances.scores = Boxes(found.boxes), found.scores
    instances.pred_classes = found.labels
    return {"instances": instances}


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
        records = dataset_records(cfg, "val")
        evaluator.reset()
        for record in records:
            evaluator.process([record], [as_instances(record)])
        theirs = evaluator.evaluate()["bbox"]
        return theirs, scored(found.items(), dataset, tmp_path / "native", by_class=by_class)

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
    assert len(expected) == 10 < len(whole)
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


@pytest.mark.parametrize("converted", [False, True], ids=["annotation file", "records alone"])
def test_it_stands_where_detectron2s_stood(d2_config, shapes, tmp_path, converted):
    """In its loop, beside other evaluators, and for datasets that only Detectron2 knows."""
    cfg = d2_config("DATASETS.COCO_FORMAT", [["val", *shapes["val"]]], "DATASETS.TRAIN", ("val",))
    records = dataset_records(cfg, "val")
    name = "val"
    if converted:
        name = f"records of {tmp_path}"
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).thing_classes = MetadataCatalog.get("val").thing_classes

    def results(evaluator):
        batches = [[record] for record in records]
        model = lambda batch: [as_instances(record) for record in batch]  # noqa: E731
        return inference_on_dataset(model, batches, DatasetEvaluators([evaluator]))["bbox"]

    theirs = COCOEvaluator(name, output_dir=str(tmp_path / "theirs"))
    ours = CocoEvaluator(name, output_dir=str(tmp_path / "ours"))
    for attribute in ("_tasks", "_output_dir", "_metadata", "_coco_api"):
        assert hasattr(theirs, attribute) and getattr(ours, attribute)
    expected = results(theirs)
    found = results(ours)
    assert {name: found[name] for name in expected} == pytest.approx(
        expected, abs=1e-9, nan_ok=True
    )
    assert 10 < expected["AP"] < 90 and len(expected) > 6


def test_no_annotations_no_ap(d2_config, shapes, tmp_path):
    """As in COCO's test-dev: the results are written to be sent in."""
    cfg = d2_config("DATASETS.COCO_FORMAT", [["val", *shapes["val"]]], "DATASETS.TRAIN", ("val",))
    record = dataset_records(cfg, "val")[0]
    content = json.loads(Path(shapes["val"][0]).read_text())
    del content["annotations"]
    file = tmp_path / "test.json"
    file.write_text(json.dumps(content))
    name = f"test-dev of {tmp_path}"
    MetadataCatalog.get(name).json_file = str(file)
    evaluator = CocoEvaluator(name, output_dir=str(tmp_path))
    evaluator.reset()
    evaluator.process([record], [as_instances(record)])
    assert evaluator.evaluate() == {}
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(written) == len(record["annotations"]) > 0
