"""Hungarian matching of predictions and objects (paper, sections 3.2 and 4.1).

Shapes: Y decoder layers, B images, N queries, K class columns, M objects of the fullest image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from ..modeling.heads import Predictions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """The objects of a batch, padded to the fullest image.

    Attributes:
        labels: (B, M) contiguous classes; 0 where padded.
        boxes: (B, M, 4) cxcywh in [0, 1] of the unpadded image; a small box where padded.
        counts: number of objects of each image, on the host.
    """

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_images(
        cls,
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> Targets:
        """
        Args:
            labels: (n,) an image.
            boxes: (n, 4) xyxy in pixels, an image.
            sizes: (h, w) an image, in the same pixels.
            device: where the targets are needed.
        """
        counts = tuple(len(image) for image in labels)
        most = max(counts, default=0)
        padded_labels = torch.zeros(len(counts), most, dtype=torch.int64)
        padded_boxes = torch.full((len(counts), most, 4), 0.5)
        for i, (label, box, (h, w)) in enumerate(zip(labels, boxes, sizes, strict=True)):
            padded_labels[i, : counts[i]] = label
            scale = torch.tensor([w, h, w, h], dtype=torch.float32)
            padded_boxes[i, : counts[i]] = box_convert(box / scale, "xyxy", "cxcywh")
        return cls(
            labels=padded_labels.to(device, non_blocking=True),
            boxes=padded_boxes.to(device, non_blocking=True),
            counts=counts,
        )


def pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of cxcywh boxes, (B, N, 4) and (B, M, 4): (B, N, M).

    Nothing in it waits for the device, as torchvision's elementwise loss does.
    """
    return torch.vmap(generalized_box_iou)(
        box_convert(boxes, "cxcywh", "xyxy"), box_convert(others, "cxcywh", "xyxy")
    )


@dataclass(frozen=True)
class Matches:
    """Which query found which object: P pairs over all layers and images.

    Attributes:
        layer, image, query, target: (P,) indices on the device of the predictions.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


class HungarianMatcher:
    """Assigns to each object the query that fits it best, one to one, in every layer."""

    def __init__(
        self,
        *,
        class_cost: float = 2.0,
        l1_cost: float = 5.0,
        giou_cost: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        softmax: bool = False,
    ):
        """
        Args:
            class_cost, l1_cost, giou_cost: weights of the three costs.
            alpha, gamma: of the focal class cost.
            softmax: class cost -p of a softmax instead (DETR as published).
        """
        self.class_cost = class_cost
        self.l1_cost = l1_cost
        self.giou_cost = giou_cost
        self.alpha = alpha
        self.gamma = gamma
        self.softmax = softmax
        self._warned = False

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

    def _column_costs(self, logits: Tensor) -> Tensor:
        """Cost of giving a query each class: (..., K)."""
        if self.softmax:
            return -logits.softmax(-1)
        p = logits.sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative

    def costs(self, predictions: Predictions, targets: Targets) -> Tensor:
        """(Y, B, N, M): what it costs to give each object to each query."""
        layers, _, num_queries = predictions.logits.shape[:3]
        columns = targets.labels[None, :, None].expand(layers, -1, num_queries, -1)
        class_cost = self._column_costs(predictions.logits).gather(-1, columns)
        # An image's layers side by side: (B, Y * N, 4).
        boxes = predictions.boxes.transpose(0, 1).flatten(1, 2)
        l1_cost = torch.cdist(boxes, targets.boxes, p=1)
        giou = pairwise_giou(boxes, targets.boxes)
        box_cost = self.l1_cost * l1_cost - self.giou_cost * giou
        box_cost = box_cost.unflatten(1, (layers, num_queries)).transpose(0, 1)
        return self.class_cost * class_cost + box_cost

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Matches:
        """Match all layers and images with one transfer from the device."""
        layers, _, num_queries = predictions.logits.shape[:3]
        device = predictions.logits.device
        if max(targets.counts, default=0) > num_queries and not self._warned:
            self._warned = True
            logger.warning(
                "an image has %d objects, more than the %d queries (MODEL.SMCA.NUM_QUERIES); "
                "only the objects that fit best are learned from",
                max(targets.counts),
                num_queries,
            )
        if not any(targets.counts):
            empty = torch.zeros(0, dtype=torch.int64, device=device)
            return Matches(empty, empty, empty, empty)
        # A loss that is not finite is reported by the trainer, not by the solver.
        costs = self.costs(predictions, targets).nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
        costs = costs.float().cpu().numpy()
        pairs = []
        for layer in range(layers):
            for image, count in enumerate(targets.counts):
                queries, objects = linear_sum_assignment(costs[layer, image, :, :count])
                pairs.append((layer, image, torch.from_numpy(queries), torch.from_numpy(objects)))
        sizes = torch.tensor([len(queries) for _, _, queries, _ in pairs])
        indices = torch.stack(
            [
                torch.tensor([layer for layer, *_ in pairs]).repeat_interleave(sizes),
                torch.tensor([image for _, image, *_ in pairs]).repeat_interleave(sizes),
                torch.cat([queries for *_, queries, _ in pairs]),
                torch.cat([objects for *_, objects in pairs]),
            ]
        )
        return Matches(*indices.to(device, non_blocking=True))
