"""The losses against sums written out over layers, images, queries and classes."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from smca.structures import Predictions
from smca.training import HungarianMatcher, Matches, SetCriterion, Targets


class FixedMatcher:
    """Queries 1 and 3 of image 0, and query 0 of image 1, in every layer."""

    def __call__(self, predictions, targets):
        layers = len(predictions.logits)
        indices = torch.tensor([[0, 1, 0], [0, 3, 1], [1, 0, 0]]).repeat(layers, 1)
        layer = torch.arange(layers).repeat_interleave(3)
        return Matches(layer, *indices.T)


def example(layers=3, classes=4, dtype=None):
    torch.manual_seed(0)
    predictions = Predictions(
        logits=torch.randn(layers, 2, 5, classes, dtype=dtype, requires_grad=True),
        boxes=(torch.rand(layers, 2, 5, 4, dtype=dtype) * 0.4 + 0.2).requires_grad_(),
        centers=torch.rand(2, 5, 2),
    )
    targets = Targets(
        labels=torch.tensor([[1, 2], [0, 0]]),
        boxes=torch.rand(2, 2, 4, dtype=dtype) * 0.4 + 0.3,
        counts=(2, 1),
    )
    return predictions, targets


KINDS = ["focal", "softmax", "mal", "ia_bce"]


def focal(x, wanted, _):
    p = 1 / (1 + math.exp(-x))
    if wanted:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


def mal(x, wanted, quality):
    p = 1 / (1 + math.exp(-x))
    if not wanted:
        return -(p**1.5) * math.log(1 - p)
    target = quality**1.5
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def ia_bce(x, wanted, quality):
    p = 1 / (1 + math.exp(-x))
    if not wanted:
        return -(p**2) * math.log(1 - p)
    target = max(p**0.25 * quality**0.75, 0.01)
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def giou(a, b):
    def corners(box):
        cx, cy, w, h = box
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners(a), corners(b)
    inter = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return inter / union - (hull - union) / hull


def iou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    width = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
    height = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
    inter = max(0, width) * max(0, height)
    return inter / (aw * ah + bw * bh - inter)


PAIRS = {(0, 1): 0, (0, 3): 1, (1, 0): 0}  # (image, query): object


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", KINDS)
def test_losses(kind, dtype, error):
    predictions, targets = example(dtype=dtype)
    criterion = SetCriterion(matcher=FixedMatcher(), classification=kind)
    losses = criterion(predictions, targets)
    assert set(losses) == {
        f"loss_{name}{suffix}" for name in ("class", "l1", "giou") for suffix in ("", "_0", "_1")
    }
    for layer, suffix in enumerate(("_0", "_1", "")):
        class_loss = weights = l1 = generalized = 0.0
        for image in range(2):
            for query in range(5):
                logits = predictions.logits[layer, image, query].tolist()
                found = PAIRS.get((image, query))
                label = None if found is None else targets.labels[image, found].item()
                quality = 0.0
                if found is not None:
                    box = predictions.boxes[layer, image, query].tolist()
                    target = targets.boxes[image, found].tolist()
                    quality = iou(box, target)
                    l1 += sum(abs(u - v) for u, v in zip(box, target, strict=True))
                    generalized += 1 - giou(box, target)
                if kind == "softmax":
                    label, weight = (3, 0.1) if label is None else (label, 1.0)
                    total = sum(math.exp(x) for x in logits)
                    class_loss -= weight * math.log(math.exp(logits[label]) / total)
                    weights += weight
                else:
                    one = {"focal": focal, "mal": mal, "ia_bce": ia_bce}[kind]
                    class_loss += sum(one(x, k == label, quality) for k, x in enumerate(logits))
        expected = {
            "class": 2 * class_loss / (weights if kind == "softmax" else 3),
            "l1": 5 * l1 / 3,
            "giou": 2 * generalized / 3,
        }
        for name, value in expected.items():
            assert losses[f"loss_{name}{suffix}"].item() == pytest.approx(value, rel=error)


def test_without_auxiliary_losses_only_the_last_layer_learns():
    predictions, targets = example()
    losses = SetCriterion(matcher=FixedMatcher(), auxiliary=False)(predictions, targets)
    assert set(losses) == {"loss_class", "loss_l1", "loss_giou"}
    every = SetCriterion(matcher=FixedMatcher())(predictions, targets)
    for name, value in losses.items():
        assert_close(value, every[name])


def test_images_without_objects_train_as_background():
    predictions, _ = example()
    targets = Targets.from_images(
        [torch.zeros(0, dtype=torch.int64)] * 2,
        [torch.zeros(0, 4)] * 2,
        [(10, 10)] * 2,
        torch.device("cpu"),
    )
    losses = SetCriterion(matcher=HungarianMatcher())(predictions, targets)
    sum(losses.values()).backward()
    assert losses["loss_l1"] == 0 and losses["loss_giou"] == 0 and losses["loss_class"] > 0
    assert (predictions.logits.grad > 0).all()
    assert predictions.boxes.grad.eq(0).all()


def test_a_perfect_prediction_has_no_loss():
    _, targets = example()
    logits = torch.full((1, 2, 5, 4), -30.0)
    boxes = torch.rand(1, 2, 5, 4)
    for (image, query), found in PAIRS.items():
        logits[0, image, query, targets.labels[image, found]] = 30.0
        boxes[0, image, query] = targets.boxes[image, found]
    predictions = Predictions(logits=logits, boxes=boxes, centers=torch.rand(2, 5, 2))
    losses = SetCriterion(matcher=HungarianMatcher())(predictions, targets)
    assert_close(sum(losses.values()), torch.tensor(0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5), (0.5, 0.0)])
def test_the_focal_loss_and_its_gradient_are_torchvisions(alpha, gamma):
    predictions, targets = example()
    logits = predictions.logits
    with torch.no_grad():
        logits *= 8
    wanted = torch.zeros_like(logits)
    for (image, query), found in PAIRS.items():
        wanted[:, image, query, targets.labels[image, found]] = 1
    dense = sigmoid_focal_loss(logits, wanted, alpha=alpha, gamma=gamma).flatten(1).sum(1)
    criterion = SetCriterion(matcher=FixedMatcher(), class_weight=3.0, alpha=alpha, gamma=gamma)
    losses = criterion(predictions, targets)
    found = torch.stack([losses[f"loss_class{suffix}"] for suffix in ("_0", "_1", "")])
    assert_close(found, dense)
    gradients = (torch.autograd.grad(x.sum(), logits, retain_graph=True) for x in (found, dense))
    assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_have_finite_losses_and_gradients(kind, dtype):
    predictions, targets = example()
    logits = (predictions.logits.detach().sign() * 1e4).to(dtype).requires_grad_()
    # The heads give float32, whatever they compute in.
    extreme = Predictions(
        logits=logits.float(), boxes=predictions.boxes, centers=predictions.centers
    )
    for matcher in (FixedMatcher(), HungarianMatcher(softmax=kind == "softmax")):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            losses = SetCriterion(matcher=matcher, classification=kind)(extreme, targets)
        (gradient,) = torch.autograd.grad(sum(losses.values()), logits, retain_graph=True)
        assert all(loss.isfinite() for loss in losses.values())
        assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("kind", ["mal", "ia_bce"])
def test_no_gradient_flows_through_what_weighs_or_is_wanted(kind):
    """The gradient of a logit is weight or target times that of the cross-entropy."""
    predictions, targets = example(dtype=torch.float64)
    criterion = SetCriterion(matcher=FixedMatcher(), classification=kind, class_weight=1.0)
    losses = criterion(predictions, targets)
    wanted = (predictions.logits, predictions.boxes)
    gradient, boxes = torch.autograd.grad(losses["loss_class"], wanted, allow_unused=True)
    assert boxes is None or not boxes.any()
    p = predictions.logits[-1].detach().sigmoid()
    expected = p ** (1.5 if kind == "mal" else 2) * p
    for (image, query), found in PAIRS.items():
        label = targets.labels[image, found]
        quality = iou(predictions.boxes[-1, image, query], targets.boxes[image, found]).detach()
        probability = p[image, query, label]
        if kind == "mal":
            target = quality**1.5
        else:
            target = (probability**0.25 * quality**0.75).clamp(min=0.01)
        expected[image, query, label] = probability - target
    assert_close(gradient[-1], expected / 3)
    assert not gradient[:-1].any()
