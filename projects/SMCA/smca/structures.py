"""The data that parts of the project hand to each other."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

Size = tuple[int, int]


class Sample(NamedTuple):
    """An image as the detector gets it, with its objects.

    Attributes:
        image: (3, h, w) uint8, channels in the order of INPUT.FORMAT.
        labels: (n,) int64 contiguous class indices.
        boxes: (n, 4) float32 xyxy in pixels of ``image``.
        image_id: COCO's.
        file_name: absolute path.
        height, width: of the file's image, in pixels.
    """

    image: Tensor
    labels: Tensor
    boxes: Tensor
    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Predictions:
    """The detector's output for a batch: B images, N queries, K logits a query.

    In training each of an image's G groups of queries counts as an image of its own: B * G.

    Attributes:
        logits: (layers, B, N, K), of all decoder layers, in evaluation of the last one only.
        boxes: (layers, B, N, 4) cxcywh in [0, 1] of the unpadded image.
        centers: (B, N, 2), the centres x, y that the last layer's boxes started from, in [0, 1] of
            the unpadded image; None where boxes start from no place (DETR).
    """

    logits: Tensor
    boxes: Tensor
    centers: Tensor | None


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first; or of a batch, with shapes (B, D, ...).

    Attributes:
        boxes: (D, 4) xyxy in pixels, not clipped to the image.
        scores: (D,).
        labels: (D,) contiguous class indices.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
