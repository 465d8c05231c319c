"""The criterion on drawn batches: finite, never negative, blind to orders, with true gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from smca.structures import Predictions
from smca.training import HungarianMatcher, SetCriterion, Targets
from smca.training.matcher import generalized_iou

HALVES = (torch.bfloat16, torch.float16)
seeds = st.integers(0, 2**32 - 1)
gammas = st.sampled_from([0.0, 0.3, 1.0, 1.5, 2.0, 5.0])


def drawn_targets(counts, classes, *, duplicates=False, smallest=1e-3):
    """Boxes of all sizes from ``smallest`` of the image's side to the whole image."""
    labels, boxes = [], []
    for count in counts:
        size = smallest ** torch.rand(count, 2)
        corner = torch.rand(count, 2) * (1 - size)
        image = torch.cat((corner, corner + size), dim=1) * torch.tensor([64.0, 48, 64, 48])
        label = torch.randint(classes, (count,))
        if duplicates and count:
            some = torch.randint(count, (count,))
            image, label = image[some], label[some]
        boxes.append(image)
        labels.append(label)
    return Targets.from_images(labels, boxes, [(48, 64)] * len(counts), torch.device("cpu"))


def drawn_predictions(layers, images, queries, columns, *, spread=3.0):
    """Of logits, for classes and boxes, of this standard deviation."""
    return Predictions(
        logits=torch.randn(layers, images, queries, columns) * spread,
        boxes=(torch.randn(layers, images, queries, 4) * spread).sigmoid(),
        centers=None,
    )


def logits_of(kind, classes):
    return classes + (kind == "softmax")


def criterion_of(classification="focal", gamma=2.0, **options):
    matcher = HungarianMatcher(softmax=classification == "softmax", gamma=gamma)
    return SetCriterion(matcher=matcher, classification=classification, gamma=gamma, **options)


def assert_sound(losses):
    for name, loss in losses.items():
        assert loss.isfinite() and loss >= 0, (name, loss)


kinds = st.sampled_from(["focal", "softmax", "mal", "ia_bce"])
few = st.integers(1, 12)
batches = st.one_of(
    st.tuples(few, few, st.lists(st.integers(0, 15), min_size=1, max_size=4)),
    st.tuples(
        st.integers(1, 5000),
        st.integers(1, 900),
        st.lists(st.integers(0, 40), max_size=2, min_size=1),
    ),
    st.tuples(few, st.integers(1, 300), st.lists(st.integers(0, 1000), max_size=1, min_size=1)),
)


@settings(max_examples=250)
@given(batches, st.integers(1, 3), kinds, st.booleans(), seeds)
@example((5000, 900, [1000]), 1, "focal", True, 0)
@example((1, 1, [0]), 1, "softmax", False, 0)
def test_any_number_of_classes_queries_and_objects(batch, layers, kind, duplicates, seed):
    torch.manual_seed(seed)
    classes, queries, counts = batch
    layers = layers if classes * queries < 1e4 else 1
    predictions = drawn_predictions(layers, len(counts), queries, logits_of(kind, classes))
    targets = drawn_targets(counts, classes, duplicates=duplicates)
    losses = criterion_of(kind)(predictions, targets)
    assert len(losses) == 3 * layers
    assert_sound(losses)
    if not any(counts):
        assert all(loss == 0 for name, loss in losses.items() if "class" not in name)


@settings(max_examples=300)
@given(
    kinds,
    gammas,
    st.sampled_from([torch.float32, *HALVES]),
    st.floats(0, 4),
    st.sampled_from([0.0, 0.1]),
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    seeds,
)
@example("focal", 0.3, torch.float32, 4.0, 0.1, [1], 0)
@example("softmax", 2.0, torch.float32, 0.0, 0.0, [0], 0)
def test_extreme_numbers_have_finite_losses_and_gradients(
    kind, gamma, dtype, power, no_object_weight, counts, seed
):
    """Logits of classes and boxes up to 1e4, boxes down to 1e-9 of the image."""
    torch.manual_seed(seed)
    targets = drawn_targets(counts, 4, smallest=1e-9)
    logits = (torch.randn(2, len(counts), 5, logits_of(kind, 4)) * 10**power).clamp(-1e4, 1e4)
    offsets = (torch.randn(2, len(counts), 5, 4) * 10**power).clamp(-1e4, 1e4)
    leaves = [x.to(dtype).requires_grad_() for x in (logits, offsets)]
    # The heads give float32, whatever the rest runs in.
    logits, boxes = leaves[0].float(), leaves[1].float().sigmoid()
    criterion = criterion_of(kind, gamma, no_object_weight=no_object_weight)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses = criterion(Predictions(logits=logits, boxes=boxes, centers=None), targets)
    assert_sound(losses)
    for gradient in torch.autograd.grad(sum(losses.values()), leaves):
        assert gradient.isfinite().all()


@settings(max_examples=150)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.sampled_from([0.0, 6e-8]), seeds)
def test_boxes_that_are_right_but_for_rounding_have_no_negative_loss(counts, error, seed):
    torch.manual_seed(seed)
    targets = drawn_targets(counts, 3, smallest=0.1)
    boxes = targets.boxes + error * torch.randn_like(targets.boxes)
    logits = torch.full((1, *boxes.shape[:2], 3), -20.0)
    logits = logits.scatter(-1, targets.labels[None, ..., None], 20.0)
    predictions = Predictions(logits=logits, boxes=boxes[None].clamp(0, 1), centers=None)
    losses = criterion_of()(predictions, targets)
    assert_sound(losses)
    assert losses["loss_l1"] + losses["loss_giou"] < 1e-4


@settings(max_examples=150)
@given(kinds, st.lists(st.integers(0, 6), min_size=1, max_size=4), st.booleans(), seeds)
def test_the_order_of_boxes_and_of_images_does_not_matter(kind, counts, duplicates, seed):
    torch.manual_seed(seed)
    classes = 5
    predictions = drawn_predictions(2, len(counts), 4, logits_of(kind, classes))
    targets = drawn_targets(counts, classes, duplicates=duplicates)
    criterion = criterion_of(kind)
    expected = criterion(predictions, targets)

    shuffled = [torch.randperm(count) for count in counts]
    labels, boxes = targets.labels.clone(), targets.boxes.clone()
    for image, order in enumerate(shuffled):
        labels[image, : len(order)] = targets.labels[image, order]
        boxes[image, : len(order)] = targets.boxes[image, order]
    found = criterion(predictions, replace(targets, labels=labels, boxes=boxes))
    assert_close(found, expected, rtol=1e-5, atol=1e-7)

    images = torch.randperm(len(counts))
    moved = replace(
        predictions, logits=predictions.logits[:, images], boxes=predictions.boxes[:, images]
    )
    counts = tuple(counts[image] for image in images)
    found = criterion(moved, Targets(targets.labels[images], targets.boxes[images], counts))
    assert_close(found, expected, rtol=1e-5, atol=1e-7)


def checked(function, *leaves):
    """That the gradients of ``function`` agree with finite differences."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-6, rtol=1e-4)


class Fixed:
    """The matches of another matcher, found once."""

    def __init__(self, matches):
        self.matches = matches

    def __call__(self, predictions, targets):
        return self.matches


@pytest.mark.slow
@settings(max_examples=40)
@given(st.booleans(), gammas, st.lists(st.integers(0, 3), min_size=1, max_size=2), seeds)
def test_gradients_of_the_criterion_are_those_of_finite_differences(softmax, gamma, counts, seed):
    torch.manual_seed(seed)
    predictions = drawn_predictions(2, len(counts), 3, 2 + softmax, spread=1.5)
    targets = drawn_targets(counts, 2, smallest=0.1)
    targets = replace(targets, boxes=targets.boxes.double())
    criterion = criterion_of("softmax" if softmax else "focal", gamma)
    first = replace(
        predictions, logits=predictions.logits.double(), boxes=predictions.boxes.double()
    )
    criterion.matcher = Fixed(criterion.matcher(first, targets))

    def losses(logits, boxes):
        found = criterion(Predictions(logits=logits, boxes=boxes, centers=None), targets)
        return torch.stack(list(found.values()))

    checked(losses, predictions.logits, predictions.boxes)


@pytest.mark.slow
@settings(max_examples=100)
@given(seeds)
def test_gradients_of_the_generalised_iou_are_those_of_finite_differences(seed):
    torch.manual_seed(seed)
    first, second = torch.rand(2, 3, 4) * 0.4 + torch.tensor([0.3, 0.3, 0.05, 0.05])
    checked(generalized_iou, first, second)
    checked(lambda a, b: generalized_iou(a[:, None], b), first, second)


@settings(max_examples=300)
@given(st.floats(-9, 0), seeds)
@example(-9.0, 0)
def test_the_generalised_iou_is_within_its_bounds(power, seed):
    torch.manual_seed(seed)
    boxes = torch.rand(2, 40, 4)
    boxes[..., 2:] *= 10**power
    boxes[0, :5, 2:] = 0
    boxes[1, :10] = boxes[0, :10]
    boxes[1, 10:20, :2] = boxes[0, 10:20, :2]  # one inside the other, if not across
    first, second = boxes.requires_grad_()
    found = generalized_iou(first, second)
    assert (found >= -1 - 1e-6).all() and (found <= 1 + 1e-6).all()
    (gradient,) = torch.autograd.grad(found.sum(), boxes)
    assert gradient.isfinite().all()
    assert_close(generalized_iou(second, first), found, rtol=0, atol=1e-6)
