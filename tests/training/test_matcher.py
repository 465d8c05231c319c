"""The matcher against brute force and costs written out for one pair at a time."""

import itertools
import logging
import math
from dataclasses import replace

import pytest
import torch
from cuda_copies import copies_that_wait
from torch.testing import assert_close
from torchvision.ops import box_convert, generalized_box_iou

from smca.structures import Predictions
from smca.training import HungarianMatcher, Targets
from smca.training.matcher import generalized_iou, restricted_matches


def iou_terms(a, b):
    """Intersection, union and hull area of two cxcywh boxes."""
    ax, ay, aw, ah = a
    bx, by, bw, bh = b
    left, right = max(ax - aw / 2, bx - bw / 2), min(ax + aw / 2, bx + bw / 2)
    top, bottom = max(ay - ah / 2, by - bh / 2), min(ay + ah / 2, by + bh / 2)
    inter = max(0, right - left) * max(0, bottom - top)
    hull = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
        max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    )
    return inter, aw * ah + bw * bh - inter, hull


def giou(a, b):
    inter, union, hull = iou_terms(a, b)
    return inter / union - (hull - union) / hull


def plain_cost(logits, box, label, target, softmax):
    if softmax:
        class_cost = -logits.softmax(-1)[label].item()
    else:
        p = logits[label].sigmoid().item()
        class_cost = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
        class_cost -= 0.75 * p**2 * -math.log(1 - p + 1e-8)
    l1 = sum(abs(u - v) for u, v in zip(box, target, strict=True))
    return 2 * class_cost + 5 * l1 - 2 * giou(box, target)


def example(counts=(2, 0, 3), layers=2, queries=5, classes=4):
    torch.manual_seed(0)
    predictions = Predictions(
        logits=torch.randn(layers, len(counts), queries, classes),
        boxes=torch.rand(layers, len(counts), queries, 4) * 0.5 + 0.1,
        centers=torch.rand(len(counts), queries, 2),
    )
    corners = [torch.rand(count, 4) * 40 for count in counts]
    boxes = [torch.cat((c[:, :2], c[:, :2] + c[:, 2:] + 1), 1) for c in corners]
    labels = [torch.randint(classes - 1, (count,)) for count in counts]
    sizes = [(100, 120)] * len(counts)
    return predictions, Targets.from_images(labels, boxes, sizes, torch.device("cpu")), boxes


def test_targets_are_normalised_by_the_unpadded_image():
    _, targets, boxes = example()
    x1, y1, x2, y2 = boxes[2][1].tolist()
    expected = [(x1 + x2) / 240, (y1 + y2) / 200, (x2 - x1) / 120, (y2 - y1) / 100]
    assert_close(targets.boxes[2, 1], torch.tensor(expected))
    assert targets.counts == (2, 0, 3) and targets.labels.shape == (3, 3)


def test_padded_targets_are_those_of_each_image_alone():
    sizes = [(100, 120), (50, 60), (80, 90)]
    labels = [torch.arange(count) for count in (2, 0, 3)]
    boxes = [torch.rand(count, 4) * 40 for count in (2, 0, 3)]
    images = list(zip(labels, boxes, sizes, strict=True))
    together = Targets.from_images(*zip(*images, strict=True), torch.device("cpu"))
    assert together.labels.dtype == torch.int64 and together.boxes.dtype == torch.float32
    for i, (label, box, size) in enumerate(images):
        alone = Targets.from_images([label], [box], [size], torch.device("cpu"))
        assert_close(together.labels[i, : len(label)], alone.labels[0], atol=0, rtol=0)
        assert_close(together.boxes[i, : len(label)], alone.boxes[0], atol=0, rtol=0)
    padding = torch.arange(3) >= torch.tensor(together.counts)[:, None]
    assert not together.labels[padding].any() and not together.boxes[padding].any()


@pytest.mark.parametrize(("source", "device"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_targets_of_objects_on_any_device(source, device):
    """Such as instances that a mapper has put on the GPU; the host waits for no copy to it."""
    with copies_that_wait() as found:
        labels = [torch.zeros(count, dtype=torch.int64, device=source) for count in (2, 3)]
        boxes = [torch.rand(count, 4, device=source) for count in (2, 3)]
        targets = Targets.from_images(labels, boxes, [(9, 9), (8, 7)], torch.device(device))
        assert targets.labels.device.type == targets.boxes.device.type == device
        assert targets.boxes.shape == (2, 3, 4) and targets.boxes.dtype == torch.float32
    assert not found


def test_generalised_iou_and_its_gradient_are_torchvisions():
    torch.manual_seed(0)
    boxes = torch.rand(40, 4) * torch.tensor([1.0, 1, 0.5, 0.5]) + 1e-3
    others = torch.rand(30, 4) * torch.tensor([1.0, 1, 0.5, 0.5]) + 1e-3
    # Equal boxes, one inside another, and one far outside.
    others[0], others[1], others[2] = boxes[0], boxes[1] * torch.tensor([1, 1, 0.5, 0.5]), 9.0
    boxes.requires_grad_()
    found = generalized_iou(boxes[:, None], others)
    corners = (box_convert(each, "cxcywh", "xyxy") for each in (boxes, others))
    expected = generalized_box_iou(*corners)
    assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = (torch.autograd.grad((x * weights).sum(), boxes) for x in (found, expected))
    assert_close(*gradients)
    assert_close(generalized_iou(boxes[:30], others), expected.diagonal())


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("softmax", [False, True])
def test_costs_and_optimal_matching(softmax, dtype, error):
    predictions, targets, _ = example()
    predictions = replace(
        predictions, logits=predictions.logits.to(dtype), boxes=predictions.boxes.to(dtype)
    )
    targets = replace(targets, boxes=targets.boxes.to(dtype))
    matcher = HungarianMatcher(softmax=softmax)
    costs = matcher.costs(predictions, targets)
    matches = matcher(predictions, targets)
    for layer, image in itertools.product(range(2), range(3)):
        count = targets.counts[image]
        expected = torch.tensor(
            [
                [
                    plain_cost(
                        predictions.logits[layer, image, n],
                        predictions.boxes[layer, image, n].tolist(),
                        targets.labels[image, m].item(),
                        targets.boxes[image, m].tolist(),
                        softmax,
                    )
                    for m in range(count)
                ]
                for n in range(5)
            ],
            dtype=dtype,
        ).view(5, count)
        assert_close(costs[layer, image, :, :count], expected, atol=error, rtol=error)
        best = min(
            sum(expected[n, m].item() for m, n in enumerate(queries))
            for queries in itertools.permutations(range(5), count)
        )
        here = (matches.layer == layer) & (matches.image == image)
        queries, objects = matches.query[here], matches.target[here]
        assert sorted(objects.tolist()) == list(range(count))
        assert len(set(queries.tolist())) == count
        assert expected[queries, objects].sum().item() == pytest.approx(best, abs=1e-4)


def test_batched_equals_single():
    predictions, targets, boxes = example()
    together = HungarianMatcher()(predictions, targets)
    for image in range(3):
        alone = HungarianMatcher()(
            Predictions(
                logits=predictions.logits[:, [image]],
                boxes=predictions.boxes[:, [image]],
                centers=predictions.centers[[image]],
            ),
            Targets(
                labels=targets.labels[[image]],
                boxes=targets.boxes[[image]],
                counts=targets.counts[image : image + 1],
            ),
        )
        here = together.image == image
        assert together.query[here].tolist() == alone.query.tolist()
        assert together.target[here].tolist() == alone.target.tolist()


def test_more_objects_than_queries_warns_once_and_keeps_the_best(caplog):
    predictions, targets, _ = example(counts=(7,), layers=1)
    matcher = HungarianMatcher()
    with caplog.at_level(logging.WARNING):
        matches = matcher(predictions, targets)
        matcher(predictions, targets)
    assert len(matches.query) == 5
    assert sum("NUM_QUERIES" in message for message in caplog.messages) == 1
    costs = matcher.costs(predictions, targets)[0, 0]
    best = min(
        sum(costs[n, m].item() for n, m in enumerate(objects))
        for objects in itertools.permutations(range(7), 5)
    )
    assert costs[matches.query, matches.target].sum().item() == pytest.approx(best, abs=1e-4)


def test_numbers_that_are_not_finite_do_not_stop_the_matching():
    predictions, targets, _ = example()
    predictions.logits[0, 0, 0] = torch.nan
    predictions.boxes[1, 2] = torch.inf
    matches = HungarianMatcher()(predictions, targets)
    assert len(matches.query) == 2 * sum(targets.counts)


def test_one_transfer_from_the_device(monkeypatch):
    transfers = []
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda x: transfers.append(x.shape) or x.detach(), raising=True
    )
    predictions, targets, _ = example(layers=6)
    HungarianMatcher()(predictions, targets)
    assert transfers == [(6, 3, 5, 3)]


def test_each_object_gets_the_cheapest_of_its_places():
    torch.manual_seed(0)
    costs, objects = torch.randn(2, 50), torch.randint(-1, 9, (2, 50))
    objects[objects == 4] = 5  # nobody has object 4
    expected = torch.zeros(2, 50, dtype=torch.bool)
    for image in range(2):
        for number in range(9):
            places = [place for place in range(50) if objects[image, place] == number]
            if places:
                expected[image, min(places, key=lambda place: costs[image, place])] = True
    assert torch.equal(restricted_matches(costs, objects, 9), expected)
    same = restricted_matches(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.int64), 1)
    assert same.tolist() == [[True, False, False]]
    assert not restricted_matches(costs, objects, 0).any()
    assert restricted_matches(costs[:, :0], objects[:, :0], 2).shape == (2, 0)
