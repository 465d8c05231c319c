"""One-to-many assignment: an object teaches the queries that have it best (docs/BEYOND.md).

Shapes: Y decoder layers, B images, N queries, K logits a query, M objects of the fullest image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..structures import Predictions, Targets, to_device
from .matcher import box_iou


@dataclass(frozen=True, kw_only=True)
class TopKAssigner:
    """Gives each object its best queries (MS-DETR, arXiv 2401.03989).

    The quality of a query for an object is the mean of the IoU of its box and of its score for the
    object's class.

    Attributes:
        number: of queries an object, at the most.
        threshold: queries of a lower quality are left out.
        iou_weight: of the IoU in this mean; the score has the rest.
    """

    number: int = 6
    threshold: float = 0.4
    iou_weight: float = 0.7

    @classmethod
    def from_config(cls, cfg) -> dict:
        keys = cfg.MODEL.SMCA.ONE_TO_MANY
        return {
            "number": keys.NUMBER,
            "threshold": keys.THRESHOLD,
            "iou_weight": keys.IOU_WEIGHT,
        }

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Tensor:
        """Return the index (Y, B, N) of each query's object, or -1.

        A query that several objects want has the one for which its quality is highest.
        """
        logits, boxes = predictions.logits, predictions.boxes
        if max(targets.counts) == 0:
            return logits.new_full(logits.shape[:3], -1, dtype=torch.int64)
        layers, _, num_queries = logits.shape[:3]
        classes = targets.labels[None, :, None].expand(layers, -1, num_queries, -1)
        scores = logits.gather(-1, classes).sigmoid()  # (Y, B, N, M)
        iou = box_iou(boxes[..., None, :], targets.boxes[:, None])
        quality = self.iou_weight * iou + (1 - self.iou_weight) * scores
        counts = to_device(torch.tensor(targets.counts), quality.device)
        padded = torch.arange(quality.shape[-1], device=quality.device) >= counts[:, None]
        quality = quality.masked_fill(padded[:, None], -1.0)
        first = quality.topk(min(self.number, num_queries), dim=2).indices
        wanted = torch.zeros_like(quality, dtype=torch.bool).scatter_(2, first, True)
        wanted &= quality >= self.threshold
        best, target = quality.masked_fill(~wanted, -1.0).max(-1)
        return target.masked_fill(best < 0, -1)
