"""Matcher and losses as other DETR implementations write them: in loops over layers and images.

:mod:`smca.training` handles all layers and images in one call. This module applies the same
definitions to one image and layer at a time, each with its own cost matrix.

Shapes: N queries, K class logits, M objects of an image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from smca.structures import Predictions

_ALPHA, _GAMMA, _NO_OBJECT = 0.25, 2.0, 0.1


def match(
    logits: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor, *, softmax: bool
) -> tuple[Tensor, Tensor]:
    """Return query and object of each of the P pairs in one image and layer, (P,) on the host.

    Args:
        logits, boxes: (N, K) and (N, 4) cxcywh in [0, 1].
        labels, wanted: labels (M,) and boxes (M, 4) of the objects.
        softmax: whether the class cost is -p of a softmax; otherwise it is the focal cost.
    """
    if softmax:
        class_cost = -logits.softmax(-1)[:, labels]
    else:
        p = logits.sigmoid()
        positive = _ALPHA * (1 - p) ** _GAMMA * -(p + 1e-8).log()
        negative = (1 - _ALPHA) * p**_GAMMA * -(1 - p + 1e-8).log()
        class_cost = positive[:, labels] - negative[:, labels]
    l1_cost = torch.cdist(boxes, wanted, p=1)
    giou = generalized_box_iou(
        box_convert(boxes, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
    )
    weight = 1.0 if softmax else 2.0
    cost = weight * class_cost + 5 * l1_cost - 2 * giou
    queries, objects = linear_sum_assignment(cost.cpu())
    return torch.from_numpy(queries), torch.from_numpy(objects)


@torch.no_grad()
def match_all(
    predictions: Predictions, labels: Sequence[Tensor], boxes: Sequence[Tensor], *, softmax: bool
) -> list[list[tuple[Tensor, Tensor]]]:
    """Return the result of :func:`match` for each image in each layer."""
    return [
        [
            match(*image, softmax=softmax)
            for image in zip(layer_logits, layer_boxes, labels, boxes, strict=True)
        ]
        for layer_logits, layer_boxes in zip(predictions.logits, predictions.boxes, strict=True)
    ]


def losses(
    predictions: Predictions, labels: Sequence[Tensor], boxes: Sequence[Tensor], *, softmax: bool
) -> dict[str, Tensor]:
    """Return the weighted losses, named as in :class:`smca.training.SetCriterion`.

    Args:
        predictions: the predictions of all layers.
        labels, boxes: (M,) and (M, 4) cxcywh in [0, 1] for each image.
        softmax: whether to use DETR's cross-entropy with a no-object class; otherwise the class
            loss is the sigmoid focal loss.
    """
    pairs = match_all(predictions, labels, boxes, softmax=softmax)
    count = max(1, sum(len(image) for image in labels))
    result = {}
    for layer, layer_pairs in enumerate(pairs):
        suffix = "" if layer == len(pairs) - 1 else f"_{layer}"
        logits, found_boxes = predictions.logits[layer], predictions.boxes[layer]
        class_loss = _softmax_loss if softmax else _focal_loss
        result[f"loss_class{suffix}"] = class_loss(logits, labels, layer_pairs, count)
        l1 = giou = 0.0
        for image, (queries, objects) in enumerate(layer_pairs):
            found, wanted = found_boxes[image, queries], boxes[image][objects]
            l1 = l1 + F.l1_loss(found, wanted, reduction="sum")
            overlaps = generalized_box_iou(
                box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
            )
            giou = giou + (1 - overlaps.diag()).sum()
        result[f"loss_l1{suffix}"] = 5 * l1 / count
        result[f"loss_giou{suffix}"] = 2 * giou / count
    return result


def _focal_loss(
    logits: Tensor, labels: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]], count: int
) -> Tensor:
    loss = 0.0
    for image, (queries, objects) in enumerate(pairs):
        wanted = torch.zeros_like(logits[image])
        wanted[queries, labels[image][objects]] = 1
        p = logits[image].sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits[image], wanted, reduction="none")
        miss = wanted * (1 - p) + (1 - wanted) * p
        balance = wanted * _ALPHA + (1 - wanted) * (1 - _ALPHA)
        loss = loss + (balance * miss**_GAMMA * entropy).sum()
    return 2 * loss / count


def _softmax_loss(
    logits: Tensor, labels: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]], count: int
) -> Tensor:
    num_logits = logits.shape[-1]
    wanted = torch.full(logits.shape[:2], num_logits - 1, device=logits.device)
    for image, (queries, objects) in enumerate(pairs):
        wanted[image, queries] = labels[image][objects]
    weight = torch.ones(num_logits, device=logits.device)
    weight[-1] = _NO_OBJECT
    return F.cross_entropy(logits.transpose(1, 2), wanted, weight)
