"""Comparing an exported file with its model.

Shapes: B images of H x W pixels, D detections an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor

from ..data.mapper import resized_shape
from ..structures import Detections, Size

# Largest accepted difference of a score, and of a box's side relative to the image's longer side.
TOLERANCE = 1e-3
# Detections whose scores are this close may be in either order.
_TIE = 1e-4

# Maps images (B, 3, H, W) to boxes (B, D, 4), scores (B, D) and labels (B, D).
Run = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def check_batches(
    cfg: CfgNode, *, least: int = 1, size: Size | None = None
) -> list[tuple[int, int, int]]:
    """Batches (B, H, W) to check: an image as the config's tests resize it, and smaller images.

    H and W are at least ``least``; ``size`` is the (h, w) of all images, if there is only one.
    """
    if size is not None:
        return [(1, *size), (3, *size)]
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    height, width = resized_shape(480, 640, short, longest) if short else (480, 640)
    shapes = ((height, width), (width // 2, height // 3), (height // 4 + 1, width // 5))
    return [(b, max(h, least), max(w, least)) for b, (h, w) in enumerate(shapes, start=1)]


@dataclass(frozen=True)
class Difference:
    """The difference between a file and its model on one batch.

    Attributes:
        shape: (B, H, W) of the batch.
        scores: largest difference of a score.
        boxes: largest difference of a box's side, in pixels.
    """

    shape: tuple[int, int, int]
    scores: float
    boxes: float

    @property
    def passes(self) -> bool:
        """Whether both differences are within the tolerance; NaN never is."""
        return self.scores <= TOLERANCE and self.boxes <= TOLERANCE * max(self.shape[1:])

    def __str__(self) -> str:
        batch, height, width = self.shape
        return (
            f"{batch} of {height}x{width}: scores differ by {self.scores:.1e}, "
            f"boxes by {self.boxes:.1e} pixels"
        )


@torch.no_grad()
def compare(model: Run, file: Run, shape: tuple[int, int, int]) -> Difference:
    """Run both on the CPU, on a batch of random images of ``shape`` (B, H, W)."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(batch, 3, 8, 8, generator=generator) * 255
    images = F.interpolate(colours, size=(height, width), mode="bilinear")
    expected, found = Detections(*model(images)), Detections(*file(images))
    return Difference(
        shape,
        scores=(expected.scores - found.scores).abs().max().item(),
        boxes=max(_box_difference(expected, found), _box_difference(found, expected)),
    )


def _box_difference(ours: Detections, theirs: Detections) -> float:
    """The largest distance of one of our boxes from their nearest box of the same detection.

    A detection is the same if its label is equal and its score nearly equal. Such detections may
    be in another order, and at the end others may take their place.
    """
    close = (ours.scores[..., None] - theirs.scores[:, None]).abs() < _TIE
    same = close & (ours.labels[..., None] == theirs.labels[:, None])
    distance = (ours.boxes[:, :, None] - theirs.boxes[:, None]).abs().amax(-1)  # (B, D, D)
    distance = distance.masked_fill(~same, float("inf")).amin(-1)
    at_the_end = ours.scores < theirs.scores[:, -1:] + _TIE
    return distance.masked_fill(at_the_end & distance.isinf(), 0.0).max().item()
