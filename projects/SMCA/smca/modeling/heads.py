"""From decoder outputs to boxes and scores (Eqs. 10-12), and from these to detections."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

from ..errors import ConfigError
from ..structures import Detections, PlacePredictions, Predictions, Size
from .layers import MLP, full_precision, logit, per_scale
from .memory import numbers_on

# How many pairs of a place and a class each level has among the candidates of NMS.
_MOST_OF_A_LEVEL = 1000


class DetectionHeads(nn.Module):
    """Class and box heads, the same for all decoder layers or one set a layer.

    They compute in the precision of their weights, float32, whatever autocast says: near the usual
    logit, -4.6, numbers of bfloat16 are 1/32 apart.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_logits: int,
        prior_probability: float | None = 0.01,
        zero_boxes: bool = False,
        size_bias: float = 0.0,
        num_sets: int = 1,
    ):
        """
        Args:
            dim: C.
            num_logits: K, a logit a class, and one more for no object where scores are a softmax.
            prior_probability: sigmoid scores start at it; None leaves the bias as it comes.
            zero_boxes: boxes start at their references.
            size_bias: with ``zero_boxes``, the logits of width and height start at it (in the
                first set).
            num_sets: 1, or one set of heads a decoder layer.
        """
        super().__init__()
        if num_logits < 1:
            raise ConfigError(
                f"the heads' num_logits is {num_logits}; it must be at least 1. A training program "
                "of this project replaces 0 by the number of classes in the data"
            )
        self.class_head = per_scale(lambda: nn.Linear(dim, num_logits), num_sets)
        self.box_head = per_scale(lambda: MLP(dim, dim, 4, 3), num_sets)
        if prior_probability is not None:
            for head in _sets(self.class_head):
                nn.init.constant_(head.bias, logit(prior_probability))
        if zero_boxes:
            for head in _sets(self.box_head):
                nn.init.zeros_(head[-1].weight)
                nn.init.zeros_(head[-1].bias)
            nn.init.constant_(_sets(self.box_head)[0][-1].bias.data[2:], size_bias)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        """The sizes and where scores start; a decoder knows more of its heads."""
        smca = cfg.MODEL.SMCA
        softmax = smca.LOSS.CLASSIFICATION == "softmax"
        return {
            "dim": smca.HIDDEN_DIM,
            "num_logits": smca.NUM_CLASSES + softmax,
            "prior_probability": None if softmax else 0.01,
        }

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    def box_offsets(self, hidden: Tensor, layer: int) -> Tensor:
        """Predict from the output (..., C) of decoder layer ``layer`` its box logits (..., 4).

        They are to be added to the layer's reference.
        """
        heads = _sets(self.box_head)
        with full_precision(hidden.device):
            return heads[layer if len(heads) > 1 else 0](hidden.to(self.dtype))

    def forward(self, hidden: Tensor, reference: Tensor | None) -> Predictions:
        """
        Args:
            hidden: (layers, B, N, C), the outputs of all layers or the last ones.
            reference: as logits, added to the boxes' (Eq. 12): initial centres x, y (B, N, 2), or
                the boxes that each layer started from (layers, B, N, 4); or None.
        """
        with full_precision(hidden.device):
            hidden = hidden.to(self.dtype)
            offsets = _apply(self.box_head, hidden)
            logits = _apply(self.class_head, hidden)
        if reference is None:
            return Predictions(logits=logits, boxes=offsets.sigmoid(), centers=None)
        boxes = (offsets + F.pad(reference, (0, 4 - reference.shape[-1]))).sigmoid()
        last = reference[-1] if reference.dim() == 4 else reference
        return Predictions(logits=logits, boxes=boxes, centers=last[..., :2].sigmoid())


def _sets(heads: nn.Module) -> list[Any]:
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _apply(heads: nn.Module, hidden: Tensor) -> Tensor:
    """Apply ``heads``, one for all layers or one a layer, to the outputs of the last layers."""
    if not isinstance(heads, nn.ModuleList):
        return heads(hidden)
    used = heads[-len(hidden) :]
    return torch.stack([head(output) for head, output in zip(used, hidden, strict=True)])


def detect(
    predictions: Predictions,
    output_sizes: Sequence[Size],
    *,
    max_detections: int,
    softmax: bool = False,
) -> list[Detections]:
    """Return the detections of each image: those of :func:`detect_batch`, or of TSP-FCOS."""
    places = predictions.places
    if places is not None and places.nms_thresh < 1:
        return detect_by_nms(predictions, places, output_sizes, max_detections=max_detections)
    found = detect_batch(predictions, output_sizes, max_detections=max_detections, softmax=softmax)
    return list(map(Detections, found.boxes, found.scores, found.labels))


def detect_batch(
    predictions: Predictions,
    output_sizes: Sequence[Size],
    *,
    max_detections: int,
    softmax: bool = False,
) -> Detections:
    """Return the best detections of each image, the same number of each, without NMS.

    Args:
        predictions: only the last layer counts.
        output_sizes: (h, w) of each image, or one for all of them, to scale the boxes to.
        max_detections: the most an image can have.
        softmax: scores are a softmax whose last logit is for no object, and each query has one
            class; else every query and class is a candidate with its sigmoid score.
    """
    places = predictions.places
    if places is not None and places.nms_thresh < 1:
        raise ConfigError(
            f"MODEL.SMCA.TSP.NMS_THRESH is {places.nms_thresh}: after NMS images have different "
            "numbers of boxes, where the same is needed; set it to 1.0, which is without NMS"
        )
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
    boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))
    boxes = box_convert(boxes, "cxcywh", "xyxy")
    if places is not None:
        boxes, scores = boxes.clamp(0, 1), scores.sqrt()
    boxes = boxes * _scale(boxes, output_sizes)
    return Detections(boxes=boxes, scores=scores, labels=labels)


def detect_by_nms(
    predictions: Predictions,
    places: PlacePredictions,
    output_sizes: Sequence[Size],
    *,
    max_detections: int,
) -> list[Detections]:
    """Return the detections of TSP-FCOS, class by class without boxes beside better ones.

    Args:
        predictions, output_sizes, max_detections: as of :func:`detect_batch`; scores are square
            roots of sigmoids.
        places: of the predictions.
    """
    scores = predictions.logits[-1].sigmoid().sqrt()  # (B, N, K)
    num_classes = scores.shape[-1]
    most = min(_MOST_OF_A_LEVEL, scores.shape[1] * num_classes)
    candidates = [
        scores.where((places.levels == level)[..., None], -1.0).flatten(1).topk(most)
        for level in range(places.num_levels)
    ]
    best = torch.cat([found.values for found in candidates], dim=1)
    index = torch.cat([found.indices for found in candidates], dim=1)
    boxes = box_convert(predictions.boxes[-1], "cxcywh", "xyxy")
    scale = _scale(boxes, output_sizes).expand(len(boxes), -1, -1)
    results = []
    for own_scores, own_index, own_boxes, size in zip(best, index, boxes, scale, strict=True):
        exists = own_scores >= 0
        own_scores, own_index = own_scores[exists], own_index[exists]
        found_boxes, labels = own_boxes[own_index // num_classes] * size, own_index % num_classes
        kept = batched_nms(found_boxes, own_scores, labels, places.nms_thresh)[:max_detections]
        found_boxes = found_boxes[kept].clamp(min=0).minimum(size)
        results.append(Detections(found_boxes, own_scores[kept], labels[kept]))
    return results


def _scale(boxes: Tensor, sizes: Sequence[Size]) -> Tensor:
    """Return width, height, width and height (B or 1, 1, 4) of ``sizes`` (h, w)."""
    scale = numbers_on(boxes.device, [size[::-1] for size in sizes], boxes.dtype)
    return scale.repeat(1, 2)[:, None]
