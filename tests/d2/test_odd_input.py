"""Odd sizes and boxes through Detectron2's host: transforms, the whole model, predictor, crowds."""

import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data.transforms import ResizeShortestEdge  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

import smca  # noqa: E402
from smca.checkpoints import load, write_checkpoint  # noqa: E402
from smca.d2 import DetrDatasetMapper, register_datasets  # noqa: E402
from smca.d2.dataset_mapper import Resize  # noqa: E402
from smca.d2.evaluation import CocoEvaluator  # noqa: E402
from smca.d2.predictor import Detectron2Host  # noqa: E402
from smca.data.mapper import DetrMapper  # noqa: E402
from smca.modeling import build_detector  # noqa: E402
from smca.modeling.detector import pad_images, pixel_statistics  # noqa: E402
from smca.training import SetCriterion, Targets  # noqa: E402

SIZES = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([(1, 1), (1, 200), (200, 1), (2, 300), (33, 65)]),
)


@settings(max_examples=300)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 900), st.integers(1, 1400))
@example(1, 4000, 800, 1333)
def test_sides_are_detectron2s_but_never_zero(height, width, short, longest):
    image = np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))
    resize = Resize(short, longest, "choice").get_transform(image)
    expected = ResizeShortestEdge.get_output_shape(height, width, short, longest)
    assert (resize.new_h, resize.new_w) == tuple(max(1, side) for side in expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def record(folder, size, boxes=(), seed=0):
    height, width = size
    path = folder / f"{height}x{width}.bmp"
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    entry = {"bbox_mode": 1, "category_id": 1, "iscrowd": 0}
    annotations = [{**entry, "bbox": list(box)} for box in boxes]
    sizes = {"height": height, "width": width}
    return {"file_name": str(path), "image_id": 1, **sizes, "annotations": annotations}


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_lines_of_pixels_can_be_flipped(folder, tiny_config, size, direction):
    cfg = Detectron2Host.read(tiny_config("INPUT.RANDOM_FLIP", direction))
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    mapper = DetrDatasetMapper(cfg, is_train=True)
    line = record(folder, size)
    pixels = np.asarray(Image.open(line["file_name"])).transpose(2, 0, 1)
    pixels = pixels[::-1] if cfg.INPUT.FORMAT == "BGR" else pixels
    turned = pixels[:, :, ::-1] if direction == "horizontal" else pixels[:, ::-1]
    found = {mapper(line)["image"].numpy().tobytes() for _ in range(20)}
    assert found == {pixels.tobytes(), turned.tobytes()}


@pytest.fixture(scope="module")
def models(tiny_config, tmp_path_factory):
    """The config, and both hosts' models with the same weights, which a file has."""
    cfg = tiny_config("INPUT.RANDOM_FLIP", "none", "MODEL.RESNETS.NORM", "FrozenBN")
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.DATASETS.COCO_FORMAT = 64, 100, []
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48,), 200
    path = tmp_path_factory.mktemp("model") / "model.pth"
    theirs_cfg = Detectron2Host.read(cfg)
    torch.manual_seed(0)
    theirs = build_model(theirs_cfg)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    write_checkpoint({"model": theirs.state_dict()}, path)
    ours = build_detector(cfg)
    load(ours, path, strict=True)
    return cfg, ours.train(), theirs_cfg, theirs.train(), path


@st.composite
def annotated(draw):
    height, width = draw(SIZES)
    side = st.one_of(st.floats(0.02, 60), st.sampled_from([1e9, 200]))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        w, h = draw(side), draw(side)
        # At least a hundredth of a pixel is in the image.
        x = draw(st.floats(max(-50, 0.01 - w), width - 0.01))
        y = draw(st.floats(max(-50, 0.01 - h), height - 0.01))
        boxes.append((x, y, w, h))
    return (height, width), boxes


@settings(max_examples=120)
@given(st.lists(annotated(), min_size=1, max_size=4))
@example([((1, 1), []), ((50, 4000), [(3990, -5, 1e9, 30)]), ((4000, 50), [(0, 0, 50, 4000)])])
def test_odd_batches_have_the_finite_losses_of_the_native_host(folder, models, batch):
    cfg, ours, theirs_cfg, theirs, _ = models
    records = [record(folder, size, boxes) for size, boxes in batch]
    inputs = [DetrDatasetMapper(theirs_cfg, is_train=True)(each) for each in records]
    samples = [DetrMapper.from_config(cfg, is_train=True)(each) for each in records]
    mean, std = pixel_statistics(cfg)
    with torch.no_grad():
        found = theirs(inputs)
        images, sizes = pad_images([sample.image for sample in samples], mean=mean, std=std)
        labels = [sample.labels for sample in samples]
        boxes = [sample.boxes for sample in samples]
        targets = Targets.from_images(labels, boxes, sizes, torch.device("cpu"))
        expected = SetCriterion(**SetCriterion.from_config(cfg))(ours(images, sizes), targets)
    assert sum(targets.counts) == sum(len(boxes) for _, boxes in batch)
    assert all(loss.isfinite() for loss in found.values())
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def predictors(models):
    cfg, *_, path = models
    return [
        smca.Predictor(cfg, path, device="cpu", engine=engine)
        for engine in ("native", "detectron2")
    ]


@settings(max_examples=40)
@given(st.lists(SIZES, min_size=1, max_size=3))
@example([(1, 1), (4000, 50), (1, 4000)])
def test_odd_sizes_have_the_same_detections_in_both_hosts(predictors, sizes):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    ours, theirs = (predictor(images) for predictor in predictors)
    for size, expected, found in zip(sizes, ours, theirs, strict=True):
        assert found.boxes.isfinite().all() and found.scores.isfinite().all()
        assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4 * max(size))


def with_crowds(rng):
    """Annotations and detections of an image: objects that are found, and noise within crowds."""
    annotations, rows = [], []
    for column in range(3):
        x, y = 10 + 100 * column, 10
        crowd = column == 1
        w, h = rng.uniform(40, 80, 2)
        entry = {"category_id": 1, "iscrowd": int(crowd), "area": w * h}
        annotations.append({**entry, "bbox": [x, y, w, h]})
        if crowd:
            for _ in range(5):
                left, top = rng.uniform(0, 0.5, 2) * (w, h)
                rows.append((x + left, y + top, 0.4 * w, 0.4 * h))
        else:
            rows.append((x, y, w, h))
    return annotations, np.array(rows)


def test_nothing_counts_inside_a_crowd_as_in_pycocotools(tiny_config, tmp_path):
    """Detections in it are neither right nor wrong; without its mark each of them is wrong."""
    rng = np.random.default_rng(0)
    Image.new("RGB", (320, 120)).save(tmp_path / "image.png")
    images = [
        {"id": i, "file_name": "image.png", "width": 320, "height": 120} for i in range(1, 41)
    ]
    drawn = {image["id"]: with_crowds(rng) for image in images}
    annotations = [
        {**entry, "image_id": image_id, "id": 10 * image_id + place}
        for image_id, (entries, _) in drawn.items()
        for place, entry in enumerate(entries, start=1)
    ]
    scores = {image_id: rng.random(len(rows)) for image_id, (_, rows) in drawn.items()}
    found = {}
    for crowds in (True, False):
        entries = [{**entry, "iscrowd": entry["iscrowd"] * crowds} for entry in annotations]
        categories = [{"id": 1, "name": "thing"}, {"id": 2, "name": "other"}]
        content = {"images": images, "categories": categories, "annotations": entries}
        (tmp_path / "a.json").write_text(json.dumps(content))
        found[crowds] = evaluated(tiny_config, tmp_path, drawn, scores)

        truth = COCO(str(tmp_path / "a.json"))
        rows = [
            {"image_id": i, "category_id": 1, "bbox": box.tolist(), "score": score}
            for i, (_, boxes) in drawn.items()
            for box, score in zip(boxes, scores[i].tolist(), strict=True)
        ]
        plain = COCOeval(truth, truth.loadRes(rows), "bbox")
        plain.evaluate(), plain.accumulate(), plain.summarize()
        assert found[crowds]["AP"] == pytest.approx(100 * plain.stats[0])
    assert found[True]["AP"] == pytest.approx(100)
    assert found[False]["AP"] < 60


def evaluated(tiny_config, folder, drawn, scores):
    entry = ["crowded", str(folder / "a.json"), str(folder)]
    names = ("DATASETS.TRAIN", ("crowded",), "DATASETS.TEST", ("crowded",))
    register_datasets(tiny_config("DATASETS.COCO_FORMAT", [entry], *names))
    try:
        DatasetCatalog.get("crowded")
        evaluator = CocoEvaluator("crowded", output_dir=str(folder / "out"))
        evaluator.reset()
        for image_id, (_, boxes) in drawn.items():
            corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
            instances = Instances((120, 320))
            instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32))
            instances.scores = torch.tensor(scores[image_id])
            instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        return evaluator.evaluate()["bbox"]
    finally:
        DatasetCatalog.remove("crowded")
        MetadataCatalog.remove("crowded")
