"""From decoder outputs to boxes and scores (Eqs. 10-12), and from those to detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from .layers import MLP
from .memory import Size


@dataclass(frozen=True)
class Predictions:
    """What the detector says of a batch: B images, N queries, K class columns.

    Attributes:
        logits: (layers, B, N, K); in evaluation layers is 1, the last.
        boxes: (layers, B, N, 4) cxcywh in [0, 1] of the unpadded image.
        centers: (B, N, 2), the initial centres x, y in [0, 1] of the unpadded image.
    """

    logits: Tensor
    boxes: Tensor
    centers: Tensor


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: (D, 4) xyxy in pixels, not clipped to the image.
        scores: (D,).
        labels: (D,) contiguous class indices.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class DetectionHeads(nn.Module):
    """Class and box heads, the same for all decoder layers."""

    def __init__(self, *, dim: int, num_columns: int, prior_probability: float | None = 0.01):
        """
        Args:
            dim: C.
            num_columns: K; the number of classes, and one more for a softmax's no-object.
            prior_probability: what sigmoid scores start at; None leaves the bias as it comes.
        """
        super().__init__()
        self.class_head = nn.Linear(dim, num_columns)
        self.box_head = MLP(dim, dim, 4, 3)
        if prior_probability is not None:
            bias = -math.log((1 - prior_probability) / prior_probability)
            nn.init.constant_(self.class_head.bias, bias)

    def forward(self, hidden: Tensor, reference: Tensor) -> Predictions:
        """
        Args:
            hidden: (layers, B, N, C).
            reference: (B, N, 2), initial centre x, y as logits, added to the boxes' (Eq. 12).
        """
        boxes = self.box_head(hidden).float()
        boxes = torch.cat((boxes[..., :2] + reference, boxes[..., 2:]), dim=-1).sigmoid()
        logits = self.class_head(hidden).float()
        return Predictions(logits=logits, boxes=boxes, centers=reference.sigmoid())


def detect(
    predictions: Predictions,
    output_sizes: Sequence[Size],
    *,
    max_detections: int,
    softmax: bool = False,
) -> list[Detections]:
    """The best detections of each image, without non-maximum suppression (section 1.7).

    Args:
        predictions: of which the last layer counts.
        output_sizes: (h, w) to scale the boxes to, an image each.
        max_detections: at most so many an image.
        softmax: the last column is no-object, and each query has one class; else every query and
            class with its sigmoid score is a candidate.
    """
    logits, boxes = predictions.logits[-1], predictions.boxes[-1]
    num_queries = logits.shape[1]
    if softmax:
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, N)
        scores, queries = scores.topk(min(max_detections, num_queries))
        labels = labels.gather(1, queries)
    else:
        num_classes = logits.shape[-1]
        scores, index = logits.flatten(1).topk(min(max_detections, num_queries * num_classes))
        scores = scores.sigmoid()
        queries, labels = index // num_classes, index % num_classes
    boxes = box_convert(boxes, "cxcywh", "xyxy")
    boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    scale = torch.tensor(output_sizes, dtype=boxes.dtype, device=boxes.device).flip(-1)
    boxes = boxes * scale.repeat(1, 2)[:, None]
    return [Detections(*image) for image in zip(boxes, scores, labels, strict=True)]
