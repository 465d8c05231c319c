"""What TSP-RCNN learns from, beside references that are written out: samples, matches, losses."""

import math

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from tiny_tsp import small_config  # noqa: E402
from torchvision.ops import box_iou, generalized_box_iou  # noqa: E402

from smca.d2.tsp_rcnn import noisy_objects  # noqa: E402

SIZE = (64, 96)
OBJECTS = torch.tensor([[10.0, 10, 40, 40], [50, 5, 90, 60], [48, 8, 92, 58]])


def build(*opts):
    torch.manual_seed(0)
    return build_model(small_config(*opts)).train()


def objects(boxes=OBJECTS):
    return Instances(SIZE, gt_boxes=Boxes(boxes), gt_classes=torch.arange(len(boxes)) % 3)


def none():
    return objects(torch.zeros(0, 4))


def proposals(boxes):
    scores = torch.zeros(len(boxes))
    return Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=scores)


def near(number, spread=12.0):
    """(number, 4): boxes around the objects, in turn, some of which overlap them too little."""
    boxes = OBJECTS[torch.arange(number) % len(OBJECTS)]
    return boxes + (torch.rand(number, 4) - 0.5) * spread


def sample(heads, boxes, targets):
    with EventStorage():
        return heads.label_and_sample_proposals(list(map(proposals, boxes)), targets)


def test_each_proposal_has_the_object_that_it_overlaps_most_or_none():
    heads = build("MODEL.SMCA.TSP.LEAST_KEPT", 1.0).roi_heads
    heads.positive_fraction, heads.batch_size_per_image = 1.0, 1000
    boxes = near(60, 24.0)
    first, second = sample(heads, [near(5), boxes], [objects(OBJECTS[:2]), objects()])
    assert len(first) == 5 and len(second) == 60
    iou = box_iou(second.proposal_boxes.tensor, OBJECTS)
    for row, image in zip(iou, range(60), strict=True):
        best = int(row.argmax())
        if row[best] >= 0.5:
            assert second.gt_classes[image] == best
            assert second.gt_objects[image] == 2 + best  # after those of the first image
            assert second.gt_boxes.tensor[image].equal(OBJECTS[best])
        else:
            assert second.gt_classes[image] == 3
    assert {0, 1, 2, 3} == set(second.gt_classes.tolist())
    assert sorted(second.proposal_boxes.tensor.tolist()) == sorted(boxes.tolist())


@pytest.mark.parametrize(("positive", "background", "sampled"), [(30, 60, 32), (3, 60, 32)])
def test_at_most_a_quarter_has_an_object(positive, background, sampled):
    heads = build("MODEL.SMCA.TSP.LEAST_KEPT", 1.0).roi_heads
    far = torch.tensor([[0.0, 50, 9, 60]]) + torch.rand(background, 4)
    (found,) = sample(heads, [torch.cat((near(positive, 1.0), far))], [objects()])
    assert len(found) == sampled
    assert (found.gt_classes < 3).sum() == min(positive, 8)
    assert len(found.proposal_boxes.tensor.unique(dim=0)) == sampled


def test_objects_with_noise_join_where_no_proposal_has_an_object():
    heads = build("MODEL.SMCA.TSP.LEAST_KEPT", 1.0).roi_heads
    far = torch.tensor([[0.0, 50, 9, 60], [0, 0, 5, 5]])
    boxes = [near(1, 1.0), far, torch.zeros(0, 4)]
    alone, joined, nothing = sample(heads, boxes, [objects(OBJECTS[:2])] * 3)
    assert len(alone) == 1 and len(joined) == 4 and len(nothing) == 2
    assert sorted(joined.gt_objects[joined.gt_classes < 3].tolist()) == [2, 3]
    assert sorted(nothing.gt_objects.tolist()) == [4, 5]
    (empty,) = sample(heads, [far], [none()])
    assert empty.proposal_boxes.tensor.shape == (2, 4) and (empty.gt_classes == 3).all()


def test_noise():
    """Centres within a tenth of the sides, sides by 0.8 to 1.25, evenly in the logarithm."""
    box = torch.tensor([[300.0, 400, 340, 480]]).expand(4000, -1)
    noisy = noisy_objects(Boxes(box), (1000, 1000)).tensor
    centers, sides = (noisy[:, :2] + noisy[:, 2:]) / 2, noisy[:, 2:] - noisy[:, :2]
    shift = (centers - torch.tensor([320.0, 440])) / torch.tensor([40.0, 80])
    power = (sides / torch.tensor([40.0, 80])).log() / math.log(0.8)
    for x, limit in ((shift, 0.1), (power, 1.0)):
        assert x.abs().max() < limit * 1.001
        assert_close(x.mean(0), torch.zeros(2), rtol=0, atol=0.05 * limit)
        assert_close(x.std(0), torch.full((2,), limit / math.sqrt(3)), rtol=0.05, atol=0)
    assert torch.corrcoef(torch.cat((shift, power), dim=1).T).triu(1).abs().max() < 0.06
    edge = noisy_objects(Boxes(torch.tensor([[0.0, 0, 96, 64]]).expand(50, -1)), SIZE).tensor
    assert edge.min() == 0 and edge[:, 2].max() == 96 and edge[:, 3].max() == 64


def test_a_random_part_of_each_image_is_dropped():
    heads = build().roi_heads
    boxes = torch.arange(700.0)[:, None] + torch.tensor([0.0, 0, 5, 5])
    kept = [heads.drop(proposals(boxes)).proposal_boxes.tensor[:, 0] for _ in range(300)]
    parts = torch.tensor([len(image) / 700 for image in kept])
    assert 0.7 <= parts.min() < 0.71 and 0.99 < parts.max() <= 1
    assert abs(parts.mean() - 0.85) < 0.02
    assert all(len(image.unique()) == len(image) for image in kept)
    often = torch.cat(kept).long().bincount(minlength=700) / 300
    assert often.min() > 0.7 and often.max() < 0.98
    assert len(heads.drop(proposals(boxes[:1]))) == 1 and len(heads.drop(proposals(boxes[:0]))) == 0


def decode(box, delta):
    """One box (4,), xyxy, moved by its delta (4,)."""
    dx, dy, dw, dh = delta / torch.tensor([10.0, 10, 5, 5])
    w, h = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * w, (box[1] + box[3]) / 2 + dy * h
    w, h = w * dw.exp(), h * dh.exp()
    return torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2))


def encode(box, wanted):
    """The delta (4,) that moves ``box`` to ``wanted``."""
    sides, others = box[2:] - box[:2], wanted[2:] - wanted[:2]
    centers, targets = (box[:2] + box[2:]) / 2, (wanted[:2] + wanted[2:]) / 2
    return torch.cat((10 * (targets - centers) / sides, 5 * (others / sides).log()))


def reference_losses(logits, deltas, images):
    """The two losses, proposal by proposal, in float64."""
    logits, deltas = logits.double(), deltas.double()
    probability, matched, start, regression = logits.softmax(1), set(), 0, 0.0
    for image in images:
        costs = {}
        for row, label in enumerate(image.gt_classes.tolist(), start=start):
            if label == 3:
                continue
            box = image.proposal_boxes.tensor[row - start].double()
            wanted = image.gt_boxes.tensor[row - start].double()
            delta = deltas[row, 4 * label : 4 * label + 4]
            giou = generalized_box_iou(decode(box, delta)[None], wanted[None])[0, 0]
            regression += (delta - encode(box, wanted)).abs().sum() + 2 * (1 - giou)
            cost = (2 * (1 - giou) - probability[row, label]).item()
            costs.setdefault(int(image.gt_objects[row - start]), []).append((cost, row))
        matched |= {min(proposals)[1] for proposals in costs.values()}
        start += len(image)
    classes = torch.cat([image.gt_classes for image in images])
    entropies, weights = 0.0, 0.0
    for row in range(start):
        if row in matched:
            entropies -= probability[row, classes[row]].log()
            weights += 1
        else:
            focus = 2 * (1 - probability[row, 3].detach()) ** 2
            entropies -= 0.1 * focus * probability[row, 3].log()
            weights += 0.1
    return entropies / (weights + 1e-6) if matched else 0.0, regression / start


@pytest.mark.parametrize("shared", [False, True])
def test_losses(shared):
    """Of two images with objects and one without; classes may share their boxes."""
    options = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", shared
    heads = build("MODEL.SMCA.TSP.LEAST_KEPT", 1.0, *options).roi_heads
    boxes = [near(24), near(9), near(20)]
    images = sample(heads, boxes, [objects(), objects(OBJECTS[:2]), none()])
    rows = sum(map(len, images))
    logits = torch.randn(rows, 4, requires_grad=True)
    deltas = torch.randn(rows, 4 if shared else 12, requires_grad=True)
    losses = heads.box_predictor.losses((logits, deltas), images, num_objects=5)
    expected = reference_losses(logits, deltas.repeat(1, 3) if shared else deltas, images)
    for loss, other in zip((losses["loss_cls"], losses["loss_box_reg"]), expected, strict=True):
        assert loss.dtype == torch.float32
        assert_close(loss.double(), other, rtol=1e-5, atol=1e-6)
        for gradient, known in zip(
            torch.autograd.grad(loss, (logits, deltas), retain_graph=True, allow_unused=True),
            torch.autograd.grad(other, (logits, deltas), retain_graph=True, allow_unused=True),
            strict=True,
        ):
            assert (gradient is None) == (known is None)
            if known is not None:
                assert_close(gradient, known, rtol=1e-4, atol=1e-6)


def test_weights_of_losses_are_keys():
    images = sample(build().roi_heads, [near(24)], [objects()])
    logits, deltas = torch.randn(len(images[0]), 4), torch.randn(len(images[0]), 12)

    def losses(*opts):
        return build(*opts).roi_heads.box_predictor.losses((logits, deltas), images, 3)

    plain = losses()
    heavy = losses("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 3.0)
    assert_close(heavy["loss_box_reg"], 3 * plain["loss_box_reg"])
    heavy = losses("MODEL.SMCA.LOSS.CLASS_WEIGHT", 3.0)
    assert_close(heavy["loss_cls"], 3 * plain["loss_cls"])
