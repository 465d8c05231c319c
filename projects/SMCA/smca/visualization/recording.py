"""Reading the co-attention of a detector while it looks at an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..modeling.detector import Detector
from ..modeling.heads import Predictions
from ..modeling.memory import Size


@dataclass(frozen=True)
class CoAttentionRecord:
    """The co-attention of one decoder layer: B images, N queries, H heads, S scales.

    Attributes:
        maps: (B, N, H, h, w) on the finest scale's map: the weights of all scales, each counted
            as the query's scale selection has it. A row of h * w sums up to 1, or to S without
            scale selection.
        stride: pixels from one cell to the next.
        shared_centers: (B, N, 2) x, y in pixels.
        head_centers: (B, N, H, 2) in pixels, of the scale that counts most.
        covariances: (B, N, H, 2, 2) of the Gaussians of that scale, in squared pixels.
        selection: (B, N, S) how much each scale counts.
    """

    maps: Tensor
    stride: int
    shared_centers: Tensor
    head_centers: Tensor
    covariances: Tensor
    selection: Tensor


@torch.no_grad()
def record_co_attention(
    detector: Detector, images: Tensor, sizes: Sequence[Size], *, layer: int = -1
) -> tuple[Predictions, CoAttentionRecord]:
    """Run the detector and read the co-attention of a decoder layer.

    Args:
        detector: in evaluation mode.
        images, sizes: as the detector takes them.
        layer: of the decoder; -1 is the last.
    """
    captured = {}

    def capture(module, arguments) -> None:
        captured["weights"] = module.weights(*arguments)
        captured["memory"], captured["prior"] = arguments[1:]

    hook = detector.decoder.layers[layer].co_attention.register_forward_pre_hook(capture)
    try:
        predictions = detector(images, sizes)
    finally:
        hook.remove()
    memory, prior, weights = (captured[name] for name in ("memory", "prior", "weights"))

    batch, num_heads, num_queries, _ = weights[0].shape
    num_scales = len(memory.shapes)
    selection = prior.selection
    if selection is None:
        selection = torch.ones(batch, num_queries, num_scales, device=images.device)
    rows, columns = memory.shapes[0]
    maps = torch.zeros(batch, num_heads, num_queries, rows, columns, device=images.device)
    for scale, (shape, stride) in enumerate(zip(memory.shapes, memory.strides, strict=True)):
        factor = stride // memory.strides[0]
        fine = weights[scale].unflatten(-1, shape) / factor**2
        fine = fine.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        maps += selection[:, None, :, scale, None, None] * fine[..., :rows, :columns]

    gaussians = prior.gaussians
    strides = torch.tensor(memory.strides, device=images.device)
    best = selection.argmax(-1)  # (B, N)
    index = best[:, :, None, None, None]
    center, precision = (
        values.gather(2, index.expand(-1, -1, 1, *values.shape[3:])).squeeze(2)
        for values in (gaussians.center, gaussians.precision)
    )  # (B, N, G, 2 or 3)
    xx, yy, xy = precision.unbind(-1)
    matrix = torch.stack((xx, xy, xy, yy), dim=-1).unflatten(-1, (2, 2))
    rate = torch.tensor(gaussians.rate, device=images.device)[best]
    # log G = -rate d^T P d is a Gaussian of covariance (2 rate P)^-1, here made wide, not infinite.
    matrix = 2 * rate[..., None, None, None] * matrix + 1e-6 * torch.eye(2, device=images.device)
    pixels = strides[best][..., None, None]
    size = torch.tensor(sizes, dtype=torch.float32, device=images.device).flip(-1)
    return predictions, CoAttentionRecord(
        maps=maps.transpose(1, 2),
        stride=memory.strides[0],
        shared_centers=predictions.centers * size[:, None],
        head_centers=(center * pixels).expand(-1, -1, num_heads, -1),
        covariances=(matrix.inverse() * pixels[..., None] ** 2).expand(-1, -1, num_heads, -1, -1),
        selection=selection,
    )
