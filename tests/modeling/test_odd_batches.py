"""Odd images and boxes through a tiny model: losses, gradients and detections."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

import smca
from smca.checkpoints import write_checkpoint
from smca.data.coco import drop_bad_boxes
from smca.data.mapper import DetrMapper, ResizeShortestEdge
from smca.inference.detect import Inference
from smca.modeling import build_detector
from smca.modeling.detector import pad_images, pixel_statistics
from smca.training.criterion import SetCriterion
from smca.training.matcher import Targets

SIZES = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([(1, 1), (1, 200), (200, 1), (2, 300), (33, 65)]),
)
NUMBERS = st.one_of(
    st.floats(-80, 80),
    st.floats(0.1, 60),
    st.sampled_from([0, 1e-6, 1e-2, 1e9, -1e9, 1e30, math.nan, math.inf]),
)


@st.composite
def annotated(draw, most=8):
    """(height, width), and x, y, w, h and class of each box; some twice."""
    boxes = draw(st.lists(st.tuples(*[NUMBERS] * 4, st.integers(0, 2)), max_size=most))
    boxes += boxes[: draw(st.integers(0, 2))]
    return draw(SIZES), [(list(box), label) for *box, label in boxes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def mapped(folder, size, boxes, short=0):
    """Image (3, h, w), labels and boxes, as training has them."""
    height, width = size
    path = folder / f"{height}x{width}.bmp"
    if not path.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    entry = {"bbox_mode": 1, "iscrowd": 0}
    annotations = [{**entry, "bbox": box, "category_id": label} for box, label in boxes]
    record = {"file_name": str(path), "image_id": 7, "height": height, "width": width}
    (record,) = drop_bad_boxes([{**record, "annotations": annotations}], "drawn")
    sample = DetrMapper(augmentations=[ResizeShortestEdge([short], 400)])(record)
    return sample.image, sample.labels, sample.boxes


@pytest.fixture(scope="module")
def model(tiny_config):
    """A tiny detector with a loss that training would have."""
    cfg = tiny_config("MODEL.RESNETS.NORM", "FrozenBN")
    torch.manual_seed(0)
    detector = build_detector(cfg)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return cfg, detector.train(), SetCriterion(**SetCriterion.from_config(cfg))


def losses_of(model, samples):
    """Losses of a batch of (image, labels, boxes)."""
    cfg, detector, criterion = model
    mean, std = pixel_statistics(cfg)
    images, labels, boxes = zip(*samples, strict=True)
    batch, sizes = pad_images(images, mean=mean, std=std)
    targets = Targets.from_images(labels, boxes, sizes, torch.device("cpu"))
    return criterion(detector(batch, sizes), targets)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(annotated(), min_size=1, max_size=4), st.sampled_from([0, 48]))
@example([((1, 1), []), ((50, 4000), []), ((4000, 50), [])], 48)
def test_batches_of_any_sizes_have_finite_losses_and_gradients(folder, model, batch, short):
    losses = losses_of(model, [mapped(folder, *case, short=short) for case in batch])
    assert all(loss.isfinite() for loss in losses.values())
    _, detector, _ = model
    detector.zero_grad()
    sum(losses.values()).backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert len(gradients) > 50 and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.slow
@settings(max_examples=150)
@given(annotated(most=20), st.randoms(use_true_random=False))
def test_permuted_boxes_have_the_same_losses(folder, model, case, random):
    image, labels, boxes = mapped(folder, *case)
    order = random.sample(range(len(labels)), len(labels))
    with torch.no_grad():
        expected = losses_of(model, [(image, labels, boxes)])
        found = losses_of(model, [(image, labels[order], boxes[order])])
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@settings(max_examples=100)
@given(st.lists(SIZES, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_permuted_images_have_permuted_results(folder, model, sizes, random):
    cfg, detector, _ = model
    images = [mapped(folder, size, [])[0] for size in sizes]
    order = random.sample(range(len(sizes)), len(sizes))
    inference = Inference(cfg, detector)
    expected = inference.detect(images, sizes)
    found = inference.detect([images[at] for at in order], [sizes[at] for at in order])
    for at, detections in zip(order, found, strict=True):
        height, width = sizes[at]
        assert_close(detections.scores, expected[at].scores, rtol=0, atol=1e-5)
        side = max(height, width)
        assert_close(detections.boxes, expected[at].boxes, rtol=0, atol=1e-5 * side)


def test_a_thousand_objects_are_learned_from_as_far_as_there_are_queries(folder, model, caplog):
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 40, (1000, 2)), rng.uniform(1, 20, (1000, 2))], axis=1)
    sample = mapped(folder, (60, 60), [(box, 0) for box in boxes.tolist()])
    assert len(sample[2]) == 1000
    fresh = SetCriterion(**SetCriterion.from_config(model[0]))  # it warns once
    losses = [losses_of((*model[:2], fresh), [sample, sample]) for _ in range(2)]
    assert all(loss.isfinite() for loss in losses[0].values())
    (message,) = [message for message in caplog.messages if "1000 objects" in message]
    assert "MODEL.SMCA.NUM_QUERIES" in message


@settings(max_examples=80)
@given(st.lists(SIZES, min_size=1, max_size=3), st.integers(0, 2**32))
@example([(1, 1), (4000, 50), (50, 4000), (1, 4000)], 0)
def test_predictions_on_odd_sizes_are_in_the_image_frame(predictor, sizes, seed):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for (height, width), found in zip(sizes, predictor(images), strict=True):
        assert len(found) > 0 and found.scores.isfinite().all() and found.boxes.isfinite().all()
        # Centre and size are each within the image.
        centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        lengths = found.boxes[:, 2:] - found.boxes[:, :2]
        frame = torch.tensor([width, height]) * (1 + 1e-5)
        assert ((centres >= 0) & (centres <= frame)).all()
        assert ((lengths >= 0) & (lengths <= frame)).all()


@pytest.fixture(scope="module")
def predictor(model, tmp_path_factory):
    cfg, detector, _ = model
    path = tmp_path_factory.mktemp("model") / "model.pth"
    write_checkpoint({"model": detector.state_dict()}, path)
    opts = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 100]
    return smca.Predictor(cfg, path, opts=opts, device="cpu")
