"""One-to-many assignment against loops over objects and queries."""

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from smca.structures import Predictions, Targets
from smca.training import TopKAssigner


def example(counts, layers=2, queries=40, classes=3):
    torch.manual_seed(0)
    most = max(counts)
    boxes = torch.cat(
        (torch.rand(len(counts), most, 2), torch.full((len(counts), most, 2), 0.4)), -1
    )
    # Most queries are near an object, and some objects near each other.
    near = (
        boxes[:, torch.arange(queries) % max(most, 1)]
        if most
        else torch.rand(len(counts), queries, 4)
    )
    near = (near + 0.1 * torch.randn(layers, *near.shape)).clamp(0.05, 0.95)
    predictions = Predictions(torch.randn(layers, len(counts), queries, classes), near, None)
    return predictions, Targets(torch.randint(classes, (len(counts), most)), boxes, counts)


def assigned(predictions, targets, number, threshold, iou_weight):
    found = torch.full(predictions.logits.shape[:3], -1)
    for layer, image in torch.cartesian_prod(*map(torch.arange, found.shape[:2])):
        boxes, logits = predictions.boxes[layer, image], predictions.logits[layer, image]
        best = torch.full((len(boxes),), -1.0)
        for index in range(targets.counts[image]):
            corners = box_convert(targets.boxes[image, index : index + 1], "cxcywh", "xyxy")
            iou = box_iou(box_convert(boxes, "cxcywh", "xyxy"), corners)[:, 0]
            score = logits[:, targets.labels[image, index]].sigmoid()
            quality = iou_weight * iou + (1 - iou_weight) * score
            for query in quality.argsort(descending=True)[:number]:
                if quality[query] >= threshold and quality[query] > best[query]:
                    best[query], found[layer, image, query] = quality[query], index
    return found


@pytest.mark.parametrize("number", [1, 6, 100])
@pytest.mark.parametrize(("threshold", "iou_weight"), [(0.4, 0.7), (0.0, 0.7), (0.6, 0.2)])
def test_each_object_has_its_best_queries(number, threshold, iou_weight):
    predictions, targets = example((5, 1, 0, 9))
    assigner = TopKAssigner(number=number, threshold=threshold, iou_weight=iou_weight)
    found = assigner(predictions, targets)
    assert torch.equal(found, assigned(predictions, targets, number, threshold, iou_weight))
    assert found[:, 2].eq(-1).all() and found[:, 0].ge(0).any()
    if number == 1:
        objects = found[0, 3][found[0, 3] >= 0]
        assert len(objects.unique()) == len(objects)


def test_a_batch_without_objects_has_no_assignment():
    predictions, targets = example((0, 0))
    assert TopKAssigner()(predictions, targets).eq(-1).all()
