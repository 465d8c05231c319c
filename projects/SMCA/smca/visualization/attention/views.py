"""The data of a co-attention picture: a query's detection, and where the query looks.

Shapes: H heads, S scales, (h, w) cells of the finest map. Points are x, y in pixels of the image.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detection:
    """The detection of one query.

    Attributes:
        query: index of the query.
        class_name: name of the class.
        score: score of that class.
        box: (4,) xyxy in pixels of the image, not clipped to it.
        overlap: IoU with the first model's detection of the same object; None for the first model.
    """

    query: int
    class_name: str
    score: float
    box: np.ndarray
    overlap: float | None = None


@dataclass(frozen=True)
class AttentionView:
    """Where one query looks in one decoder layer.

    Attributes:
        layer: index of the decoder layer.
        maps: (H, h, w), attention of each head. The key in column j and row i lies at
            (j, i) * ``steps``.
        steps: (2,), pixels from one key to the next, x and y.
        strides: strides of the S scales, in pixels of the image that the model saw.
        shared_center: (2,), the point that the query's box starts from; or None.
        head_centers: (H, 2), or None.
        covariances: (H, 2, 2) of the heads' Gaussians, in squared pixels; or None.
        scale_weights: (S,), or None.
    """

    layer: int
    maps: np.ndarray
    steps: np.ndarray
    strides: tuple[int, ...]
    shared_center: np.ndarray | None = None
    head_centers: np.ndarray | None = None
    covariances: np.ndarray | None = None
    scale_weights: np.ndarray | None = None


# One model's part of a row: a detection and where its query looks, or why there is none.
Panel = tuple[Detection, AttentionView] | str
