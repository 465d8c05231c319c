"""TSP-FCOS's matching and losses beside the same in plain loops, in float64."""

import math
from dataclasses import replace

import pytest
import torch

from smca.structures import PlacePredictions, Predictions, Targets
from smca.training import TSPCriterion

STRIDES = (8, 16)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def focal(logit, positive):
    """The focal loss of one logit, with alpha 0.25 and gamma 2."""
    p = sigmoid(logit)
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def generalized_iou(one, other):
    """FCOS's, of distances to left, top, right and bottom."""
    areas = [(b[0] + b[2]) * (b[1] + b[3]) for b in (one, other)]
    low, high = ([pick(a, b) for a, b in zip(one, other, strict=True)] for pick in (min, max))
    inter, hull = ((b[0] + b[2]) * (b[1] + b[3]) for b in (low, high))
    union = sum(areas) - inter
    return (inter + 1) / (union + 1) - (hull - union) / hull


@pytest.fixture
def case():
    """Made-up predictions of 30 of 50 places for objects of three images; one has none."""
    generator = torch.Generator().manual_seed(3)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = Targets.from_images(
        [torch.tensor([2, 0, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([1])],
        [
            torch.tensor(
                [[0.0, 0.0, 70.0, 50.0], [10.0, 20.0, 90.0, 99.0], [3.0, 9.0, 60.0, 99.0]]
            ),
            torch.zeros(0, 4),
            torch.tensor([[5.0, 6.0, 80.0, 90.0]]),
        ],
        [(100, 100)] * 3,
        torch.device("cpu"),
    )
    everywhere = torch.full((3, 50), -1)
    everywhere[0, 5:25] = torch.arange(20) % 2  # the third object has no place
    everywhere[2, 12:40] = 0
    chosen = torch.stack([torch.randperm(50, generator=generator)[:30] for _ in range(3)])
    levels = chosen % 2
    points = 20.0 + 29.0 * torch.rand(3, 30, 2, generator=generator, dtype=torch.float64)
    predictions = Predictions(
        logits=numbers(1, 3, 30, 4).requires_grad_(),
        boxes=torch.zeros(1, 3, 30, 4),
        centers=None,
        places=PlacePredictions(
            levels=levels,
            num_levels=2,
            nms_thresh=0.6,
            local_logits=numbers(3, 50, 4).requires_grad_(),
            points=points,
            strides=torch.tensor(STRIDES)[levels].double(),
            distances=numbers(3, 30, 4).exp().requires_grad_(),
            centerness=numbers(3, 30).requires_grad_(),
            assigned=(everywhere, everywhere.gather(1, chosen)),
        ),
    )
    return predictions, targets


def reference(predictions, targets):
    places = predictions.places
    everywhere, index = (x.tolist() for x in places.assigned)
    labels, boxes = targets.labels.tolist(), targets.pixel_boxes.tolist()
    local, logits = places.local_logits.tolist(), predictions.logits[0].tolist()
    losses = dict.fromkeys(("local", "class", "giou", "centerness"), 0.0)
    positive_places = sum(object_ >= 0 for image in everywhere for object_ in image)
    for image, own in enumerate(local):
        for place, row in enumerate(own):
            of = everywhere[image][place]
            for label, logit in enumerate(row):
                losses["local"] += focal(logit, of >= 0 and label == labels[image][of])
    positive, weights, matched = 0, 0.0, 0
    for image, own in enumerate(logits):
        costs = {}  # object: (cost, token)
        facts = {}
        for token, row in enumerate(own):
            of = index[image][token]
            if of < 0:
                continue
            x, y = places.points[image, token].tolist()
            x0, y0, x1, y1 = boxes[image][of]
            stride = places.strides[image, token].item()
            left, top, right, bottom = wanted = [
                d / stride for d in (x - x0, y - y0, x1 - x, y1 - y)
            ]
            across, down = min(left, right) / max(left, right), min(top, bottom) / max(top, bottom)
            center = math.sqrt(across * down)
            giou = generalized_iou(places.distances[image, token].tolist(), wanted)
            cost = -sigmoid(row[labels[image][of]]) * (center + 1e-6) + 2.0 * (1 - giou)
            costs.setdefault(of, []).append((cost, token))
            facts[token] = labels[image][of]
            positive, weights = positive + 1, weights + center
            losses["giou"] += (1 - giou) * center
            p = sigmoid(places.centerness[image, token].item())
            losses["centerness"] -= center * math.log(p) + (1 - center) * math.log(1 - p)
        cheapest = {min(of)[1] for of in costs.values()}
        matched += len(cheapest)
        for token, row in enumerate(own):
            for label, logit in enumerate(row):
                is_own = facts.get(token) == label
                unmatched = is_own and token not in cheapest
                loss = focal(logit, is_own and token in cheapest)
                losses["class"] += (0.1 if unmatched else 1.0) * loss
    losses["local"] /= max(positive_places, 1)
    losses["class"] /= 2 * (max(matched, 1) + 0.1 * max(positive, 1))
    losses["giou"] /= max(weights, 1e-6)
    losses["centerness"] /= max(positive, 1)
    return losses


def test_the_losses_are_those_of_the_facts(case):
    predictions, targets = case
    found = TSPCriterion()(predictions, targets)
    expected = reference(predictions, targets)
    assert {name.removeprefix("loss_"): loss.item() for name, loss in found.items()} == (
        pytest.approx(expected, rel=1e-7)
    )
    assert expected["giou"] > 0.1
    sum(found.values()).backward()
    for tensor in (predictions.logits, predictions.places.distances):
        assert tensor.grad.isfinite().all() and tensor.grad.any()


def test_images_without_objects(case):
    predictions, targets = case
    nothing = [torch.full_like(x, -1) for x in predictions.places.assigned]
    places = replace(predictions.places, assigned=tuple(nothing))
    empty = Targets.from_images(
        [targets.labels[0, :0]] * 3,
        [targets.pixel_boxes[0, :0]] * 3,
        [(100, 100)] * 3,
        torch.device("cpu"),
    )
    predictions = replace(predictions, places=places)
    found = TSPCriterion()(predictions, empty)
    expected = reference(predictions, empty)
    for name, loss in found.items():
        assert loss.item() == pytest.approx(expected[name.removeprefix("loss_")], rel=1e-9)
    assert found["loss_giou"] == found["loss_centerness"] == 0
    sum(found.values()).backward()
    assert predictions.places.distances.grad is None or not predictions.places.distances.grad.any()
    assert predictions.logits.grad.isfinite().all()
