"""Reading the co-attention of a detector while it looks at images.

Shapes: B images, N queries, H heads, S scales, G Gaussians a query, (h, w) cells of the finest map.
Points are x, y in pixels of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.detector import Detector
from ..modeling.memory import Memory, numbers_on
from ..modeling.spatial_prior import Prior
from ..structures import Predictions, Size
from ..visualization.attention.views import AttentionView


@dataclass(frozen=True)
class CoAttentionRecord:
    """The co-attention of one decoder layer.

    Attributes:
        layer: index of the layer.
        maps: (B, N, H, h, w), attention per cell of the finest scale's map: the sum over the
            scales, each weighted by the query's scale selection. The attention of a coarser
            scale's key is spread over the cells that it stands for, linearly from key to key.
        steps: (B, 2), pixels from one cell to the next, x and y.
        strides: strides of the S scales, in pixels of the image that the model saw.
        shared_centers: (B, N, 2), the points that the queries' boxes start from; None if they
            start from no point.
        head_centers: (B, N, H, 2), of the scale that counts most; None if nothing modulates the
            co-attention.
        covariances: (B, N, H, 2, 2) of the Gaussians of that scale, in squared pixels; or None.
        selection: (B, N, S), how much each scale counts; or None.
    """

    layer: int
    maps: Tensor
    steps: Tensor
    strides: tuple[int, ...]
    shared_centers: Tensor | None = None
    head_centers: Tensor | None = None
    covariances: Tensor | None = None
    selection: Tensor | None = None

    def view(self, query: int, image: int = 0) -> AttentionView:
        """Where one query looks in one image."""

        def chosen(values: Tensor | None) -> np.ndarray | None:
            return None if values is None else values[image, query].cpu().numpy()

        return AttentionView(
            layer=self.layer,
            maps=chosen(self.maps),
            steps=self.steps[image].numpy(),
            strides=self.strides,
            shared_center=chosen(self.shared_centers),
            head_centers=chosen(self.head_centers),
            covariances=chosen(self.covariances),
            scale_weights=chosen(self.selection),
        )


def has_co_attention_maps(detector: Detector) -> bool:
    """Whether the decoder attends to whole maps; Deformable DETR's samples a few points."""
    return hasattr(detector.decoder.layers[-1].co_attention, "weights")


@torch.no_grad()
def record_co_attention(
    detector: Detector,
    images: Tensor,
    sizes: Sequence[Size],
    *,
    layers: Sequence[int] = (-1,),
    output_sizes: Sequence[Size] | None = None,
) -> tuple[Predictions, list[CoAttentionRecord]]:
    """Run the detector and read the co-attention of some decoder layers.

    Args:
        detector: in evaluation mode; :func:`has_co_attention_maps` must be true for it.
        images, sizes: arguments of the detector.
        layers: indices of decoder layers; -1 is the last.
        output_sizes: (h, w) of the images in whose pixels points are given; by default ``sizes``.

    Returns:
        the predictions, and a record per layer.
    """
    inputs: dict[int, tuple] = {}

    def keep(layer: int):
        return lambda module, arguments: inputs.update({layer: arguments})

    indices = range(len(detector.decoder.layers))
    layers = [indices[layer] for layer in layers]
    attentions = {layer: detector.decoder.layers[layer].co_attention for layer in layers}
    hooks = [part.register_forward_pre_hook(keep(layer)) for layer, part in attentions.items()]
    try:
        # Compiled code calls no hooks.
        with torch.compiler.set_stance("force_eager"):
            predictions = detector(images, sizes)
    finally:
        for hook in hooks:
            hook.remove()

    wanted = torch.tensor([size[::-1] for size in output_sizes or sizes], dtype=torch.float32)
    factors = wanted / torch.tensor([size[::-1] for size in sizes])  # (B, 2)
    centers = predictions.centers
    if centers is not None:
        centers = centers * wanted[:, None].to(centers.device)
    records = []
    for layer in layers:
        *_, memory, prior = inputs[layer]
        weights = attentions[layer].weights(*inputs[layer])
        modulation = {}
        if isinstance(prior, Prior):
            head_centers, covariances = _gaussians_in_pixels(prior, memory, factors)
            num_heads = weights[0].shape[1]
            modulation = {
                "head_centers": head_centers.expand(-1, -1, num_heads, -1),
                "covariances": covariances.expand(-1, -1, num_heads, -1, -1),
                "selection": prior.selection,
            }
        maps = _on_finest_map(weights, memory, modulation.get("selection"))
        records.append(
            CoAttentionRecord(
                layer=layer,
                maps=maps.transpose(1, 2),
                steps=factors * memory.strides[0],
                strides=memory.strides,
                shared_centers=centers,
                **modulation,
            )
        )
    return predictions, records


def _on_finest_map(weights: list[Tensor], memory: Memory, selection: Tensor | None) -> Tensor:
    """The sum of all scales' weights, (B, H, N, L_s) each, on the finest map: (B, H, N, h, w)."""
    rows, columns = memory.shapes[0]
    maps = 0
    for scale, (shape, stride) in enumerate(zip(memory.shapes, memory.strides, strict=True)):
        factor = stride // memory.strides[0]
        # Key (j, i) of a scale lies where key (j, i) * factor of the finest scale lies.
        height, width = ((side - 1) * factor + 1 for side in shape)
        fine = weights[scale].flatten(1, 2).unflatten(-1, shape) / factor**2
        if factor > 1:
            fine = F.interpolate(fine, (height, width), mode="bilinear", align_corners=True)
            fine = F.pad(fine, (0, columns - width, 0, rows - height), mode="replicate")
        fine = fine.unflatten(1, weights[scale].shape[1:3])
        if selection is not None:
            fine = fine * selection[:, None, :, scale, None, None]
        maps = maps + fine
    return maps


def _gaussians_in_pixels(prior: Prior, memory: Memory, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (B, N, G, 2) and covariances (B, N, G, 2, 2) of the scale that counts most.

    Args:
        factors: (B, 2), output pixels per pixel that the model saw, x and y.
    """
    gaussians = prior.gaussians
    device = gaussians.center.device
    best = torch.zeros(gaussians.center.shape[:2], dtype=torch.int64, device=device)
    if prior.selection is not None:
        best = prior.selection.argmax(-1)  # (B, N)
    center, precision = (
        values.take_along_dim(best[:, :, None, None, None], dim=2).squeeze(2)
        for values in (gaussians.center, gaussians.precision)
    )  # (B, N, G, 2 or 3)
    xx, yy, xy = precision.unbind(-1)
    # log G = -rate d^T P d is a Gaussian of covariance (2 rate P)^-1. A small addition keeps flat
    # Gaussians wide instead of infinite; in float32 it would vanish beside large numbers.
    matrix = torch.stack((xx, xy, xy, yy), dim=-1).unflatten(-1, (2, 2)).double()
    rate = gaussians.rate[best][..., None, None, None]
    covariance = (2 * rate * matrix + 1e-10 * torch.eye(2, device=device)).inverse().float()
    pixels = numbers_on(device, memory.strides)[best][..., None, None]
    pixels = pixels * factors.to(device)[:, None, None]  # (B, N, 1, 2)
    return center * pixels, covariance * pixels[..., :, None] * pixels[..., None, :]
