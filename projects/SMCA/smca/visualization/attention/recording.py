"""Reading the co-attention of a detector while it looks at images.

Shapes: B images, N queries, H heads, S scales, M decoder layers, (h, w) cells of the finest map.
Points are x, y in pixels of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...modeling.detector import Detector
from ...modeling.memory import Memory, numbers_on
from ...modeling.spatial_prior import Prior
from ...structures import Predictions, Size


@dataclass(frozen=True)
class Look:
    """Where one query looks in one decoder layer.

    Attributes:
        layer: index of the decoder layer.
        maps: (H, h, w), see :class:`CoAttentionRecord`; the key of column j and row i lies at
            (j, i) * ``steps``.
        steps: (2,), pixels from one key to the next, x and y.
        strides: of the S scales, in pixels of what the model saw.
        shared_center: (2,), where the query's box starts from; or None.
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


@dataclass(frozen=True)
class CoAttentionRecord:
    """The co-attention of decoder layers.

    Attributes:
        layers: indices of the M layers.
        maps: (M, B, N, H, h, w), attention a cell of the finest scale's map: the sum over the
            scales, each counted as the query's scale selection has it. What a coarser scale's key
            has is spread over as many cells as it stands for, linearly from key to key.
        steps: (B, 2), pixels from one cell to the next, x and y.
        strides: of the S scales, in pixels of what the model saw.
        shared_centers: (B, N, 2), where the query's box starts from; None where it starts from no
            place.
        head_centers: (M, B, N, H, 2), of the scale that counts most; None where nothing modulates
            the co-attention.
        covariances: (M, B, N, H, 2, 2) of the Gaussians of that scale, in squared pixels; or None.
        selection: (M, B, N, S) how much each scale counts; or None.
    """

    layers: tuple[int, ...]
    maps: Tensor
    steps: Tensor
    strides: tuple[int, ...]
    shared_centers: Tensor | None
    head_centers: Tensor | None
    covariances: Tensor | None
    selection: Tensor | None

    def looks(self, query: int, image: int = 0) -> list[Look]:
        """Where one query looks, in each of the layers."""

        def shown(values: Tensor | None, *index: int) -> np.ndarray | None:
            return None if values is None else values[index].cpu().numpy()

        return [
            Look(
                layer=layer,
                maps=shown(self.maps, number, image, query),
                steps=shown(self.steps, image),
                strides=self.strides,
                shared_center=shown(self.shared_centers, image, query),
                head_centers=shown(self.head_centers, number, image, query),
                covariances=shown(self.covariances, number, image, query),
                scale_weights=shown(self.selection, number, image, query),
            )
            for number, layer in enumerate(self.layers)
        ]


def has_co_attention_maps(detector: Detector) -> bool:
    """Whether the decoder attends to whole maps; Deformable DETR's samples a few places."""
    return hasattr(detector.decoder.layers[-1].co_attention, "weights")


@torch.no_grad()
def record_co_attention(
    detector: Detector,
    images: Tensor,
    sizes: Sequence[Size],
    *,
    layers: Sequence[int] = (-1,),
    output_sizes: Sequence[Size] | None = None,
) -> tuple[Predictions, CoAttentionRecord]:
    """Run the detector and read the co-attention of some decoder layers.

    Args:
        detector: in evaluation mode; :func:`has_co_attention_maps` holds for it.
        images, sizes: as the detector takes them.
        layers: of the decoder; -1 is the last.
        output_sizes: (h, w) of the images whose pixels are meant, by default ``sizes``.
    """
    indices = range(len(detector.decoder.layers))
    layers = tuple(indices[layer] for layer in layers)
    wanted = torch.tensor([size[::-1] for size in output_sizes or sizes], dtype=torch.float32)
    factors = wanted / torch.tensor([size[::-1] for size in sizes])  # (B, 2)
    parts: dict[int, dict] = {}

    def reader(layer: int):
        def read(module, arguments) -> None:
            memory, prior = arguments[2:]
            parts[layer] = _read(module.weights(*arguments), memory, prior, factors)

        return read

    hooks = [
        detector.decoder.layers[layer].co_attention.register_forward_pre_hook(reader(layer))
        for layer in layers
    ]
    try:
        # What is compiled does not look for hooks.
        with torch.compiler.set_stance("force_eager"):
            predictions = detector(images, sizes)
    finally:
        for hook in hooks:
            hook.remove()

    def together(name: str) -> Tensor | None:
        values = [parts[layer][name] for layer in layers]
        return None if values[0] is None else torch.stack(values)

    strides = parts[layers[0]]["strides"]
    centers = predictions.centers
    return predictions, CoAttentionRecord(
        layers=layers,
        maps=together("maps"),
        steps=factors * strides[0],
        strides=strides,
        shared_centers=None if centers is None else centers * wanted[:, None].to(centers.device),
        head_centers=together("head_centers"),
        covariances=together("covariances"),
        selection=together("selection"),
    )


def _read(weights: list[Tensor], memory: Memory, prior: object, factors: Tensor) -> dict:
    """What :class:`CoAttentionRecord` holds of one layer, by name."""
    selection = head_centers = covariances = None
    if isinstance(prior, Prior):
        selection = prior.selection
        head_centers, covariances = _gaussians_in_pixels(
            prior, memory, weights[0].shape[1], factors
        )
    return {
        "maps": _on_finest_map(weights, memory, selection).transpose(1, 2),
        "strides": memory.strides,
        "head_centers": head_centers,
        "covariances": covariances,
        "selection": selection,
    }


def _on_finest_map(weights: list[Tensor], memory: Memory, selection: Tensor | None) -> Tensor:
    """The weights (B, H, N, L_s) of all scales together: (B, H, N, h, w)."""
    rows, columns = memory.shapes[0]
    maps = 0
    for scale, (shape, stride) in enumerate(zip(memory.shapes, memory.strides, strict=True)):
        factor = stride // memory.strides[0]
        # Key (j, i) of a scale lies where key (j, i) * factor of the finest does.
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


def _gaussians_in_pixels(
    prior: Prior, memory: Memory, num_heads: int, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """Centres (B, N, H, 2) and covariances (B, N, H, 2, 2) of the scale that counts most.

    Args:
        factors: (B, 2), pixels meant for one that the model saw, x and y.
    """
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
    # In float64, as what is added must not be lost beside large numbers.
    matrix = torch.stack((xx, xy, xy, yy), dim=-1).unflatten(-1, (2, 2)).double()
    rate = gaussians.rate[best]
    # log G = -rate d^T P d is a Gaussian of covariance (2 rate P)^-1, here made wide, not infinite.
    matrix = 2 * rate[..., None, None, None] * matrix + 1e-10 * torch.eye(2, device=device)
    pixels = numbers_on(device, memory.strides)[best][..., None, None]
    pixels = pixels * factors.to(device)[:, None, None]  # (B, N, 1, 2)
    covariance = matrix.inverse().float() * pixels[..., :, None] * pixels[..., None, :]
    return (
        (center * pixels).expand(-1, -1, num_heads, -1),
        covariance.expand(-1, -1, num_heads, -1, -1),
    )
