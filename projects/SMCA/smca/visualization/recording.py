"""Reading the co-attention of a detector while it looks at an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..modeling.detector import Detector
from ..modeling.heads import Predictions
from ..modeling.memory import Memory, Size
from ..modeling.spatial_prior import Prior


@dataclass(frozen=True)
class CoAttentionRecord:
    """The co-attention of one decoder layer: B images, N queries, H heads, S scales.

    Attributes:
        maps: (B, N, H, h, w) on the finest scale's map: the weights of all scales, each counted
            as the query's scale selection has it. A row of h * w sums up to 1, or for SMCA without
            scale selection to S.
        stride: pixels from one cell to the next.
        shared_centers: (B, N, 2) x, y in pixels: where the query's box starts from; None where it
            starts from no place.
        head_centers: (B, N, H, 2) in pixels, of the scale that counts most; None where nothing
            modulates the co-attention.
        covariances: (B, N, H, 2, 2) of the Gaussians of that scale, in squared pixels; or None.
        selection: (B, N, S) how much each scale counts; or None.
    """

    maps: Tensor
    stride: int
    shared_centers: Tensor | None
    head_centers: Tensor | None
    covariances: Tensor | None
    selection: Tensor | None


def has_co_attention_maps(detector: Detector) -> bool:
    """Whether the decoder attends to whole maps; Deformable DETR's samples a few places."""
    return hasattr(detector.decoder.layers[-1].co_attention, "weights")


@torch.no_grad()
def record_co_attention(
    detector: Detector, images: Tensor, sizes: Sequence[Size], *, layer: int = -1
) -> tuple[Predictions, CoAttentionRecord]:
    """Run the detector and read the co-attention of a decoder layer.

    Args:
        detector: in evaluation mode; :func:`has_co_attention_maps` holds for it.
        images, sizes: as the detector takes them.
        layer: of the decoder; -1 is the last.
    """
    captured = {}

    def capture(module, arguments) -> None:
        captured["weights"] = module.weights(*arguments)
        captured["memory"], captured["prior"] = arguments[2:]

    hook = detector.decoder.layers[layer].co_attention.register_forward_pre_hook(capture)
    try:
        # What is compiled does not look for hooks.
        with torch.compiler.set_stance("force_eager"):
            predictions = detector(images, sizes)
    finally:
        hook.remove()
    memory, prior, weights = (captured[name] for name in ("memory", "prior", "weights"))
    modulated = isinstance(prior, Prior)
    selection = prior.selection if modulated else None
    head_centers = covariances = None
    if modulated:
        head_centers, covariances = _gaussians_in_pixels(prior, memory, weights[0].shape[1])
    centers = predictions.centers
    size = torch.tensor(sizes, dtype=torch.float32, device=images.device).flip(-1)
    return predictions, CoAttentionRecord(
        maps=_on_finest_map(weights, memory, selection).transpose(1, 2),
        stride=memory.strides[0],
        shared_centers=None if centers is None else centers * size[:, None],
        head_centers=head_centers,
        covariances=covariances,
        selection=selection,
    )


def _on_finest_map(weights: list[Tensor], memory: Memory, selection: Tensor | None) -> Tensor:
    """The weights (B, H, N, L_s) of all scales together: (B, H, N, h, w)."""
    rows, columns = memory.shapes[0]
    maps = 0
    for scale, (shape, stride) in enumerate(zip(memory.shapes, memory.strides, strict=True)):
        factor = stride // memory.strides[0]
        fine = weights[scale].unflatten(-1, shape) / factor**2
        fine = fine.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        # The finest map may end within a cell of a coarser one.
        fine = fine[..., :rows, :columns]
        if selection is not None:
            fine = fine * selection[:, None, :, scale, None, None]
        maps = maps + fine
    return maps


def _gaussians_in_pixels(prior: Prior, memory: Memory, num_heads: int) -> tuple[Tensor, Tensor]:
    """Centres (B, N, H, 2) and covariances (B, N, H, 2, 2) of the scale that counts most."""
    gaussians = prior.gaussians
    device = gaussians.center.device
    best = torch.zeros(gaussians.center.shape[:2], dtype=torch.int64, device=device)
    if prior.selection is not None:
        best = prior.selection.argmax(-1)  # (B, N)
    index = best[:, :, None, None, None]
    center, precision = (
        values.gather(2, index.expand(-1, -1, 1, *values.shape[3:])).squeeze(2)
        for values in (gaussians.center, gaussians.precision)
    )  # (B, N, G, 2 or 3)
    xx, yy, xy = precision.unbind(-1)
    matrix = torch.stack((xx, xy, xy, yy), dim=-1).unflatten(-1, (2, 2))
    rate = torch.tensor(gaussians.rate, device=device)[best]
    # log G = -rate d^T P d is a Gaussian of covariance (2 rate P)^-1, here made wide, not infinite.
    matrix = 2 * rate[..., None, None, None] * matrix + 1e-6 * torch.eye(2, device=device)
    pixels = torch.tensor(memory.strides, device=device)[best][..., None, None]
    return (
        (center * pixels).expand(-1, -1, num_heads, -1),
        (matrix.inverse() * pixels[..., None] ** 2).expand(-1, -1, num_heads, -1, -1),
    )
