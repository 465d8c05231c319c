"""The native host's images and scores are Detectron2's."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.config import get_cfg as detectron2_cfg  # noqa: E402
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog  # noqa: E402
from detectron2.data.datasets import load_coco_json, register_coco_instances  # noqa: E402
from detectron2.data.transforms import ResizeShortestEdge  # noqa: E402
from detectron2.evaluation import COCOEvaluator  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from scored import scored  # noqa: E402

import smca  # noqa: E402
from smca.data.coco import load_coco  # noqa: E402
from smca.data.mapper import DetrMapper, resized_shape  # noqa: E402
from smca.data.shapes import write_shapes_dataset  # noqa: E402
from smca.structures import Detections  # noqa: E402


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    return write_shapes_dataset(root, num_train=1, num_val=24, image_size=160, seed=1)["val"]


@pytest.fixture
def registered(shapes):
    name = "parity_shapes"
    register_coco_instances(name, {}, *shapes)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_shapes_of_resized_images():
    rng = np.random.default_rng(0)
    for _ in range(5000):
        h, w = rng.integers(30, 2000, 2).tolist()
        short, longest = int(rng.integers(16, 1000)), int(rng.integers(100, 1500))
        expected = ResizeShortestEdge.get_output_shape(h, w, short, longest)
        assert resized_shape(h, w, short, longest) == expected


def test_records(shapes):
    records = load_coco("parity", *shapes).records
    assert records == load_coco_json(*shapes, dataset_name="parity_records")


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images(tmp_path, image_format, suffix):
    theirs, ours = detectron2_cfg(), smca.get_cfg()
    for cfg in (theirs, ours):
        cfg.INPUT.FORMAT = image_format
    reference = DatasetMapper(theirs, is_train=False)
    mapper = DetrMapper.from_config(ours, is_train=False)
    rng = np.random.default_rng(0)
    for width, height in ((64, 48), (37, 91), (300, 60), (1500, 1000)):
        pixels = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 8
        path = str(tmp_path / f"image.{suffix}")
        pixels.save(path, exif=exif)
        record = {"file_name": path, "image_id": 1, "width": height, "height": width}
        expected = reference(dict(record))["image"]
        found = mapper(record | {"annotations": []}).image
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def imperfect(record, rng):
    """Moved, mislabelled, doubled, missed and invented boxes."""
    rows = []
    for annotation in record["annotations"]:
        if rng.random() < 0.15:
            continue
        for _ in range(rng.integers(1, 3)):
            x, y, w, h = np.array(annotation["bbox"]) * rng.normal(1, 0.04, 4)
            label = annotation["category_id"] if rng.random() < 0.8 else rng.integers(3)
            rows.append((x, y, x + w, y + h, rng.random(), label))
    x, y, w, h = rng.uniform(5, 60, 4)
    rows.append((x, y, x + w, y + h, rng.random(), rng.integers(3)))
    rows = torch.tensor(np.array(rows), dtype=torch.float32)
    return Detections(boxes=rows[:, :4], scores=rows[:, 4], labels=rows[:, 5].long())


def test_scores(shapes, registered, tmp_path):
    dataset = load_coco(registered, *shapes)
    rng = np.random.default_rng(0)
    found = [(record["image_id"], imperfect(record, rng)) for record in dataset.records]
    DatasetCatalog.get(registered)  # fills in the metadata
    evaluator = COCOEvaluator(
        registered, distributed=False, output_dir=str(tmp_path / "d2"), use_fast_impl=False
    )
    evaluator.reset()
    for record, (_, detections) in zip(dataset.records, found, strict=True):
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(detections.boxes)
        instances.scores = detections.scores
        instances.pred_classes = detections.labels
        evaluator.process([record], [{"instances": instances}])
    expected = evaluator.evaluate()["bbox"]
    scores = scored(found, dataset, tmp_path)
    assert [name for name in scores if not name.startswith("AR")] == list(expected)
    for metric, value in expected.items():
        assert scores[metric] == pytest.approx(value, abs=1e-9, nan_ok=True), metric
    assert 20 < scores["AP"] < 90 and not math.isnan(scores["APs"])

    theirs = (tmp_path / "d2/coco_instances_results.json").read_text()
    ours = (tmp_path / "coco_instances_results.json").read_text()
    assert json.loads(ours) == json.loads(theirs)
