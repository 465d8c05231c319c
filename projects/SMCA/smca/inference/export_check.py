"""Whether an exported file does what its model does.

Shapes: B images of H x W pixels, D detections an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor

from ..data.mapper import resized_shape
from ..structures import Detections, Size

# Largest differences from PyTorch that pass: of scores, and of boxes as parts of the longer side.
TOLERANCE = 1e-3
# Detections whose scores are so close may stand in either order.
_TIE = 1e-4

# From images (B, 3, H, W) to boxes (B, D, 4), scores (B, D) and labels (B, D).
Run = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def check_batches(
    cfg: CfgNode, *, least: int = 1, size: Size | None = None
) -> list[tuple[int, int, int]]:
    """Batches (B, H, W): one image as the config's tests resize it, and more small ones.

    Args:
        cfg: of the model.
        least: of H and W.
        size: (h, w) that all images must have; None: any.
    """
    if size is not None:
        return [(1, *size), (3, *size)]
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    height, width = resized_shape(480, 640, short, longest) if short else (480, 640)
    shapes = ((height, width), (width // 2, height // 3), (height // 4 + 1, width // 5))
    return [(b, max(h, least), max(w, least)) for b, (h, w) in enumerate(shapes, start=1)]


@dataclass(frozen=True)
class Difference:
    """How far a file is from its model on one batch.

    Attributes:
        shape: (B, H, W).
        scores: largest difference of a score.
        boxes: largest difference of a box's side, in pixels.
    """

    shape: tuple[int, int, int]
    scores: float
    boxes: float

    @property
    def passes(self) -> bool:
        """Whether both are within the tolerance; numbers that are none never are."""
        return self.scores <= TOLERANCE and self.boxes <= TOLERANCE * max(self.shape[1:])

    def __str__(self) -> str:
        batch, height, width = self.shape
        return (
            f"{batch} of {height}x{width}: scores differ by {self.scores:.1e}, "
            f"boxes by {self.boxes:.1e} pixels"
        )


@torch.no_grad()
def compare(model: Run, file: Run, shape: tuple[int, int, int]) -> Difference:
    """Run both on the CPU, on a batch of made-up images of ``shape`` (B, H, W)."""
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


def _box_difference(of: Detections, to: Detections) -> float:
    """The largest distance of a box from the nearest of the others that may be the same detection.

    Where scores are nearly equal, another order, and others at the end, are right as well.
    """
    close = (of.scores[..., None] - to.scores[:, None]).abs() < _TIE
    same = close & (of.labels[..., None] == to.labels[:, None])
    distance = (of.boxes[:, :, None] - to.boxes[:, None]).abs().amax(-1)  # (B, D, D)
    distance = distance.masked_fill(~same, float("inf")).amin(-1)
    at_the_end = of.scores < to.scores[:, -1:] + _TIE
    return distance.masked_fill(at_the_end & distance.isinf(), 0.0).max().item()
