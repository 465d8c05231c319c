"""Which queries to look into: what each of them detects in an image, and where it looks.

Shapes: N queries, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from ...errors import ConfigError
from ...inference.predictor import Predictor, require_finite
from .recording import CoAttentionRecord, Look, has_co_attention_maps, record_co_attention


@dataclass(frozen=True)
class Detection:
    """What a query detects.

    Attributes:
        query: its index.
        class_name: of the class meant.
        score: of that class.
        box: (4,) xyxy in pixels of the image, not clipped to it.
        overlap: IoU with the box of the detection that it was matched with, if with any.
    """

    query: int
    class_name: str
    score: float
    box: np.ndarray
    overlap: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What a model's queries detect in one image, and where they look.

    Attributes:
        image: (h, w, 3) uint8, RGB.
        class_names: of the K classes.
        boxes: (N, 4) xyxy in pixels of ``image``.
        scores: (N, K).
        record: in pixels of ``image``.
    """

    image: np.ndarray
    class_names: Sequence[str]
    boxes: Tensor
    scores: Tensor
    record: CoAttentionRecord

    def best(
        self,
        count: int = 1,
        *,
        class_name: str | None = None,
        point: tuple[float, float] | None = None,
    ) -> list[Detection]:
        """The detections of at most ``count`` queries, those with the best scores first.

        Args:
            class_name: only its scores count; by default the best class of each query does.
            point: x, y in pixels of the image; only boxes that contain it count.
        """
        if class_name is None:
            scores, labels = self.scores.max(-1)
        else:
            label = self.class_names.index(class_name)
            scores, labels = self.scores[:, label], torch.full((len(self.scores),), label)
        order = scores.argsort(descending=True, stable=True)
        if point is not None:
            x1, y1, x2, y2 = self.boxes[order].unbind(-1)
            x, y = point
            order = order[(x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)]
        return [self._detection(query, labels[query]) for query in order[:count].tolist()]

    def of_query(self, query: int) -> Detection:
        """The detection of one query: its best class."""
        return self._detection(query, self.scores[query].argmax())

    def same_object(
        self, found: Detection, *, threshold: float = 0.1, least_overlap: float = 0.5
    ) -> Detection | None:
        """The detection that shows what another model ``found``: of its class, and where it is.

        Args:
            threshold: least score.
            least_overlap: least IoU.

        Returns:
            the one of the greatest IoU, if there is any.
        """
        if found.class_name not in self.class_names:
            return None
        label = self.class_names.index(found.class_name)
        scores, labels = self.scores.max(-1)
        overlaps = box_iou(self.boxes, torch.from_numpy(found.box)[None]).squeeze(1)
        overlaps[(labels != label) | (scores < threshold) | (overlaps < least_overlap)] = -1
        query = int(overlaps.argmax())
        if overlaps[query] < 0:
            return None
        return self._detection(query, label, overlap=float(overlaps[query]))

    def looks(self, found: Detection) -> list[Look]:
        """Where the query of a detection looks, in each of the layers recorded."""
        return self.record.looks(found.query)

    def _detection(self, query: int, label: int | Tensor, **more: float) -> Detection:
        return Detection(
            query=query,
            class_name=self.class_names[int(label)],
            score=float(self.scores[query, label]),
            box=self.boxes[query].numpy(),
            **more,
        )


def inspect_image(predictor: Predictor, image: object, *, layer: int | None = -1) -> Inspection:
    """Run a model on an image and read what its queries do.

    Args:
        predictor: of the model.
        image: as the predictor takes it.
        layer: of the decoder, -1 is the last; None: all of them.

    Raises:
        ConfigError: the decoder attends to no maps, or has no such layer.
        FloatingPointError: the model's weights are not finite.
    """
    decoder = predictor.detector.decoder
    if not has_co_attention_maps(predictor.detector):
        raise ConfigError(
            f"MODEL.SMCA.DECODER.NAME is {type(decoder).__name__!r}, which samples a few places "
            "and has no co-attention maps to draw; those of SMCA, DETR and Conditional DETR have"
        )
    count = len(decoder.layers)
    if layer is not None and not -count <= layer < count:
        raise ConfigError(
            f"there is no decoder layer {layer}: MODEL.SMCA.DECODER.NUM_LAYERS is {count}, so "
            f"they are 0 to {count - 1}, or -1 for the last"
        )
    batch, sizes, originals = predictor.inputs([image])
    height, width = originals[0].shape[:2]
    predictions, record = record_co_attention(
        predictor.detector,
        batch,
        sizes,
        layers=range(count) if layer is None else (layer,),
        output_sizes=[(height, width)],
    )
    logits = predictions.logits[-1, 0].cpu()
    require_finite(logits)
    softmax = predictor.cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"
    boxes = box_convert(predictions.boxes[-1, 0].cpu(), "cxcywh", "xyxy")
    return Inspection(
        image=originals[0],
        class_names=predictor.class_names,
        boxes=boxes * torch.tensor([width, height, width, height]),
        scores=logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid(),
        record=record,
    )
