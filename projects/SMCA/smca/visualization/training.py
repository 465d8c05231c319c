"""What the model finds in the images it trains on: a picture for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ..structures import Detections
from .detections import draw_detections

# Images of a batch that are shown.
NUM_SHOWN = 4
_LONGEST = 640  # pixels of an image's longer side in the picture, at most
_GAP = 8
# Detections of this score are drawn; where there are fewer than so many, the best.
_THRESHOLD = 0.3
_FEW = 3


def training_picture(
    images: Sequence[Tensor],
    truth: Sequence[Tensor],
    detections: Sequence[Detections],
    *,
    image_format: str,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """The images side by side, with what was found, and dashed what is there.

    Args:
        images: (3, h, w) uint8 each.
        truth: (n, 4) xyxy in pixels, an image each.
        detections: in the same pixels, an image each.
        image_format: order of the channels, "RGB" or "BGR".
        class_names: by class index; without them the index is written.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    pictures = []
    for image, boxes, found in zip(images, truth, detections, strict=True):
        pixels = image.cpu().numpy().transpose(1, 2, 0)
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., :: _step(image_format)]))
        factor = min(1.0, _LONGEST / max(picture.size))
        shown = max(_FEW, int((found.scores >= _THRESHOLD).sum()))
        drawn = draw_detections(
            picture.resize([max(1, round(side * factor)) for side in picture.size]),
            found.boxes[:shown].cpu() * factor,
            found.labels[:shown].tolist(),
            found.scores[:shown].tolist(),
            class_names,
            threshold=0.0,
            truth=boxes.cpu() * factor,
        )
        pictures.append(np.asarray(drawn))
    height = max(len(picture) for picture in pictures)
    padded = [
        np.pad(picture, ((0, height - len(picture)), (0, _GAP), (0, 0)), constant_values=255)
        for picture in pictures
    ]
    return np.concatenate(padded, axis=1)[:, :-_GAP]


def _step(image_format: str) -> int:
    return -1 if image_format == "BGR" else 1
