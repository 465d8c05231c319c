"""A picture for TensorBoard of the model's detections in the images that it trains on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ..structures import Detections
from .detections import draw_detections, grid

NUM_SHOWN = 4  # images of a batch
_LONGEST = 640  # pixels of an image's longer side in the picture, at most
# All detections of at least this score are drawn, and at least so many.
_THRESHOLD = 0.3
_FEW = 3


def training_picture(
    images: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    detections: Sequence[Detections],
    *,
    image_format: str,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw images side by side, with their detections and, dashed, their ground truth.

    Args:
        images: (3, h, w) uint8 each.
        gt_boxes: (n, 4) xyxy in pixels of each image.
        detections: detections in pixels of each image.
        image_format: order of the channels, "RGB" or "BGR".
        class_names: names by class index; by default the index is written.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    pictures = []
    for image, boxes, found in zip(images, gt_boxes, detections, strict=True):
        pixels = (image if image_format == "RGB" else image.flip(0)).permute(1, 2, 0)
        picture = Image.fromarray(pixels.cpu().numpy())
        factor = min(1.0, _LONGEST / max(picture.size))
        shown = max(_FEW, int((found.scores >= _THRESHOLD).sum()))
        drawn = draw_detections(
            picture.resize([max(1, round(side * factor)) for side in picture.size]),
            found.boxes[:shown].cpu() * factor,
            found.labels[:shown].tolist(),
            found.scores[:shown].tolist(),
            class_names,
            threshold=0.0,
            gt_boxes=boxes.cpu() * factor,
        )
        pictures.append(drawn)
    return np.asarray(grid(pictures, columns=len(pictures)))
