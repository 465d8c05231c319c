"""Running a model on an image to see what its queries detect, and where they look."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from ..config import is_tsp
from ..errors import ConfigError
from ..evaluation.detections import require_finite
from ..visualization.attention.views import Detection
from .predictor import Predictor
from .recording import CoAttentionRecord, record_co_attention


@dataclass(frozen=True)
class Inspection:
    """The detections of a model's N queries in one image, and where the queries look.

    Attributes:
        image: (h, w, 3) uint8, RGB.
        class_names: names of the K classes.
        boxes: (N, 4) xyxy in pixels of ``image``.
        scores: (N, K).
        record: the co-attention, in pixels of ``image``.
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
        """The detections of at most ``count`` queries, the best scores first.

        Args:
            count: most detections.
            class_name: the class whose scores count; by default the best class of each query.
            point: x, y in pixels of the image; boxes that do not contain it are left out.
        """
        label = None if class_name is None else self.class_names.index(class_name)
        scores = self.scores.amax(-1) if label is None else self.scores[:, label]
        order = scores.argsort(descending=True, stable=True)
        if point is not None:
            x1, y1, x2, y2 = self.boxes[order].unbind(-1)
            x, y = point
            order = order[(x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)]
        return [self.detection(query, label) for query in order[:count].tolist()]

    def same_object(self, found: Detection, *, threshold: float = 0.1) -> Detection | None:
        """The detection of the object that another model ``found``.

        Args:
            found: the other model's detection.
            threshold: least score.

        Returns:
            the detection of the same class with the largest IoU, or None if that is less than 0.5.
        """
        if found.class_name not in self.class_names:
            return None
        label = self.class_names.index(found.class_name)
        scores, labels = self.scores.max(-1)
        overlaps = box_iou(self.boxes, torch.from_numpy(found.box)[None]).squeeze(1)
        overlaps[(labels != label) | (scores < threshold)] = 0
        overlap, query = overlaps.max(0)
        if overlap < 0.5:
            return None
        return self.detection(int(query), label, overlap=float(overlap))

    def detection(
        self, query: int, label: int | None = None, overlap: float | None = None
    ) -> Detection:
        """The detection of one query, by default with its best class."""
        if label is None:
            label = int(self.scores[query].argmax())
        return Detection(
            query=query,
            class_name=self.class_names[label],
            score=float(self.scores[query, label]),
            box=self.boxes[query].numpy(),
            overlap=overlap,
        )


def inspect_image(predictor: Predictor, image: object, *, layer: int | None = -1) -> Inspection:
    """Run a model on an image and read what its queries do.

    Args:
        predictor: of the model; it takes ``image``.
        layer: index of the decoder layer; -1 is the last, None means all.

    Raises:
        ConfigError: the decoder has no maps to draw, or has no such layer.
        FloatingPointError: the model's weights are not finite.
    """
    detector = predictor.detector
    if not detector.has_attention_maps:
        model = predictor.cfg.MODEL
        what = f"MODEL.SMCA.DECODER.NAME is {model.SMCA.DECODER.NAME!r}, which samples a few places"
        if is_tsp(predictor.cfg):
            what = f"MODEL.META_ARCHITECTURE is {model.META_ARCHITECTURE!r}, which has no decoder,"
        raise ConfigError(
            f"{what} and has no co-attention maps to draw; those of SMCA, DETR and Conditional "
            "DETR have"
        )
    count = len(detector.decoder.layers)
    if layer is not None and not -count <= layer < count:
        raise ConfigError(
            f"there is no decoder layer {layer}: MODEL.SMCA.DECODER.NUM_LAYERS is {count}, so "
            f"layers are 0 to {count - 1}, and -1 is the last"
        )
    batch, sizes, (original,) = predictor.inputs([image])
    height, width = original.shape[:2]
    predictions, record = record_co_attention(
        detector,
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
        image=original,
        class_names=predictor.class_names,
        boxes=boxes * torch.tensor([width, height, width, height]),
        scores=logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid(),
        record=record,
    )
