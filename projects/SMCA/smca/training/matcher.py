"""Hungarian matching of predictions and objects (paper, sections 3.2 and 4.1).

Shapes: Y decoder layers, B images, N queries, K logits a query, M objects of the fullest image.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..structures import Predictions, Targets, to_device

logger = logging.getLogger(__name__)

# In fractions of the image: a square a thousandth of a pixel wide, in an image 1,000 pixels wide.
_LEAST_AREA = 1e-12


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the generalised IoU (...) of cxcywh boxes (..., 4) that broadcast against each other.

    It goes coordinate by coordinate, which is several times faster than torchvision's pairwise
    function, and never waits for the device, as torchvision's loss does. Boxes without area have
    finite values and gradients, too.
    """
    inter, union = _intersection_and_union(boxes, others)
    left, top, right, bottom = _edges(boxes)
    other_left, other_top, other_right, other_bottom = _edges(others)
    hull_width = torch.maximum(right, other_right) - torch.minimum(left, other_left)
    hull_height = torch.maximum(bottom, other_bottom) - torch.minimum(top, other_top)
    hull = (hull_width * hull_height).clamp(min=_LEAST_AREA)
    return inter / union - (hull - union) / hull


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the IoU (...) of cxcywh boxes (..., 4) like :func:`generalized_iou`."""
    inter, union = _intersection_and_union(boxes, others)
    return inter / union


def _intersection_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = _edges(boxes)
    other_left, other_top, other_right, other_bottom = _edges(others)
    width = torch.minimum(right, other_right) - torch.maximum(left, other_left)
    height = torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)
    inter = width.clamp(min=0) * height.clamp(min=0)
    area = (right - left) * (bottom - top)
    other_area = (other_right - other_left) * (other_bottom - other_top)
    return inter, (area + other_area - inter).clamp(min=_LEAST_AREA)


def _edges(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, top, right and bottom of cxcywh boxes (..., 4): (...) each."""
    x, y, w, h = boxes.unbind(-1)
    return x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h


@dataclass(frozen=True)
class Matches:
    """Indices (P,) of the pairs of queries and objects, over all layers and images."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


@dataclass(kw_only=True, eq=False)
class HungarianMatcher:
    """Assigns a query of its own to each object, at the least total cost, in every layer.

    Attributes:
        class_cost, l1_cost, giou_cost: weights of the three costs.
        alpha, gamma: parameters of the focal class cost.
        softmax: the class cost is -p of a softmax instead (DETR as published).
    """

    class_cost: float = 2.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    softmax: bool = False
    _warned: bool = field(default=False, init=False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            "class_cost": smca.MATCHER.CLASS_COST,
            "l1_cost": smca.MATCHER.L1_COST,
            "giou_cost": smca.MATCHER.GIOU_COST,
            "alpha": smca.LOSS.FOCAL_ALPHA,
            "gamma": smca.LOSS.FOCAL_GAMMA,
            "softmax": smca.LOSS.CLASSIFICATION == "softmax",
        }

    def _class_cost(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The costs (..., M) of ``classes`` (..., M) for queries with logits (..., K)."""
        if self.softmax:
            return -logits.softmax(-1).gather(-1, classes)
        p = logits.gather(-1, classes).sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative

    def costs(self, predictions: Predictions, targets: Targets) -> Tensor:
        """The costs (Y, B, N, M) of giving each object to each query."""
        layers, _, num_queries = predictions.logits.shape[:3]
        classes = targets.labels[None, :, None].expand(layers, -1, num_queries, -1)
        class_cost = self._class_cost(predictions.logits, classes)
        l1_cost = torch.cdist(predictions.boxes, targets.boxes[None], p=1)
        giou = generalized_iou(predictions.boxes[..., None, :], targets.boxes[:, None])
        return self.class_cost * class_cost + self.l1_cost * l1_cost - self.giou_cost * giou

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Matches:
        """Match all layers and images with one transfer from the device."""
        layers, _, num_queries = predictions.logits.shape[:3]
        if max(targets.counts, default=0) > num_queries and not self._warned:
            self._warned = True
            logger.warning(
                "an image has %d objects, more than the %d queries (MODEL.SMCA.NUM_QUERIES); "
                "only the objects that fit best are learned from",
                max(targets.counts),
                num_queries,
            )
        # A loss that is not finite is reported by the trainer, not by the solver.
        costs = self.costs(predictions, targets).nan_to_num_(nan=1e6, posinf=1e6, neginf=-1e6)
        numbers = costs.float().cpu().numpy()
        groups = [(y, b) for y in range(layers) for b in range(len(targets.counts))]
        found = [linear_sum_assignment(numbers[y, b, :, : targets.counts[b]]) for y, b in groups]
        layer, image = np.repeat(groups, [len(queries) for queries, _ in found], axis=0).T
        query, target = np.concatenate(found, axis=1)
        indices = torch.from_numpy(np.stack([layer, image, query, target]))
        return Matches(*to_device(indices, predictions.logits.device))


def restricted_matches(costs: Tensor, objects: Tensor, number: int) -> Tensor:
    """Match each object to the cheapest of the places, or proposals, that have this object (TSP).

    A place has one object or none, so that objects do not compete, and this is the optimum of the
    paper's bipartite matching (arXiv 2011.10881).

    Args:
        costs: (B, R) of giving a place its object.
        objects: (B, R), the index of the object that a place has, from 0; -1: none.
        number: of objects, at the most.

    Returns:
        (B, R) bool. An object that no place has is not matched.
    """
    own = objects[..., None] == torch.arange(number, device=costs.device)  # (B, R, number)
    nowhere = costs.shape[1]
    if not nowhere:
        return torch.zeros_like(objects, dtype=torch.bool)
    place = torch.where(own, costs[..., None], torch.inf).argmin(dim=1)
    place = place.where(own.any(dim=1), nowhere)
    matched = torch.zeros_like(F.pad(objects, (0, 1)), dtype=torch.bool)
    return matched.scatter(1, place, True)[:, :-1]
