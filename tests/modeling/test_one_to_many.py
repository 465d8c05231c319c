"""One-to-many supervision: what queries see when, and what it teaches."""

import pytest
import torch
from exact import exact_detector
from torch.testing import assert_close
from torchvision.ops import box_convert, box_iou

from smca.errors import ConfigError
from smca.modeling import build_detector
from smca.structures import Targets

ANCHORED = ("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder")
MANY = "MODEL.SMCA.ONE_TO_MANY"
EXACT = (
    *("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0),
    *("MODEL.RESNETS.NORM", "FrozenBN"),
)
KINDS = ["focal", "softmax", "mal", "ia_bce"]
SIZES = [(64, 96), (50, 80)]


@pytest.fixture
def build(tiny_config):
    """``build(...)``: a detector in float64 without dropout, and its criterion."""

    def made(*options):
        return exact_detector(tiny_config(*ANCHORED, f"{MANY}.ENABLED", True, *EXACT, *options))

    return made


def images():
    torch.manual_seed(1)
    batch = torch.zeros(2, 3, 64, 96, dtype=torch.float64)
    for image, (h, w) in zip(batch, SIZES, strict=True):
        image[:, :h, :w].normal_()
    return batch


def objects_at(predictions, *counts):
    """Objects where the first queries of each image predict boxes in both layers."""
    boxes = predictions.one_to_many.boxes.detach()
    boxes = boxes[:, :: boxes.shape[1] // 2, : max(counts)].mean(0)
    labels = torch.arange(boxes.shape[0] * boxes.shape[1]).view(boxes.shape[:2]) % 3
    return Targets(labels, boxes + 0.01, counts)


def test_queries_see_the_image_first_and_each_other_then(build):
    detector, _ = build()
    predictions = detector(images(), SIZES)
    many = predictions.one_to_many
    assert many.logits.shape == predictions.logits.shape
    anchors = detector.decoder.anchors.weight

    def seen(logits):
        (gradient,) = torch.autograd.grad(logits.square().sum(), anchors, retain_graph=True)
        return gradient.ne(0).any(1).tolist()

    assert seen(many.logits[0, :, 3]) == [query == 3 for query in range(10)]
    assert all(seen(predictions.logits[0, :, 3])) and all(seen(many.logits[1, :, 3]))
    assert torch.equal(many.centers, predictions.centers)


def test_the_heads_are_its_own_and_evaluation_runs_without_them(build):
    detector, _ = build()
    expected = detector.eval()(images(), SIZES)
    assert expected.one_to_many is None
    own = detector.decoder.one_to_many
    before = detector.train()(images(), SIZES)
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter)
    after = detector(images(), SIZES)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.boxes, before.boxes)
    assert not torch.equal(after.one_to_many.logits, before.one_to_many.logits)
    assert torch.equal(detector.eval()(images(), SIZES).logits, expected.logits)


def class_loss(kind, x, wanted, iou):
    p = x.sigmoid()
    if kind == "focal":
        high, low = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
        return high if wanted else low
    if wanted:
        target = iou**1.5 if kind == "mal" else max((p**0.25 * iou**0.75).item(), 0.01)
        return -target * p.log() - (1 - target) * (1 - p).log()
    return -(p ** (1.5 if kind == "mal" else 2)) * (1 - p).log()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_sums_over_assigned_queries(build, kind, groups):
    detector, criterion = build(
        *("MODEL.SMCA.LOSS.CLASSIFICATION", kind, "MODEL.SMCA.QUERY_GROUPS", groups),
        *(f"{MANY}.THRESHOLD", 0.3),
    )
    predictions = detector(images(), SIZES)
    targets = objects_at(predictions, 3, 1)
    losses = criterion(predictions, targets)
    many, repeated = predictions.one_to_many, targets.repeat(groups)
    assigned = criterion.assigner(many, repeated)
    for layer, suffix in enumerate(("_0", "")):
        total, l1, positives, weights = 0.0, 0.0, 0, 0.0
        for image, query in torch.cartesian_prod(torch.arange(2 * groups), torch.arange(10)):
            index = assigned[layer, image, query]
            logits, box = many.logits[layer, image, query], many.boxes[layer, image, query]
            label = repeated.labels[image, index] if index >= 0 else None
            iou = None
            if label is not None:
                positives += 1
                target = repeated.boxes[image, index]
                l1 += (box - target).abs().sum()
                corners = [box_convert(x[None], "cxcywh", "xyxy") for x in (box, target)]
                iou = box_iou(*corners).item()
            if kind == "softmax":
                weight = 0.1 if label is None else 1.0
                weights += weight
                total -= weight * logits.log_softmax(-1)[3 if label is None else label]
            else:
                total += sum(class_loss(kind, x, k == label, iou) for k, x in enumerate(logits))
        assert positives >= 4
        divisor = weights if kind == "softmax" else positives
        assert_close(losses[f"loss_class_many{suffix}"], 2 * total / divisor)
        assert_close(losses[f"loss_l1_many{suffix}"], 5 * l1 / positives)
        assert losses[f"loss_giou_many{suffix}"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_objects_teaches_background_alone(build, kind):
    detector, criterion = build("MODEL.SMCA.LOSS.CLASSIFICATION", kind)
    predictions = detector(images(), SIZES)
    none = Targets(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 4).double(), (0, 0))
    losses = criterion(predictions, none)
    assert losses.keys() == criterion(predictions, objects_at(predictions, 2, 1)).keys()
    many = {name: loss for name, loss in losses.items() if "_many" in name}
    assert len(many) == 6 and all((loss > 0) == ("class" in name) for name, loss in many.items())
    sum(losses.values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in detector.decoder.parameters()
    )


def test_a_decoder_whose_queries_are_no_boxes_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"ONE_TO_MANY\.ENABLED is True; .* not SMCADecoder"):
        build_detector(tiny_config(f"{MANY}.ENABLED", True))
