"""Reading the co-attention of a detector while it looks at images.

Shapes: B images, H heads, S scales, G Gaussians a query and scale (H or 1), (h, w) cells of the
finest map. Points are x, y in pixels of the images.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modeling.detector import Detector
from ..modeling.gaussians import Gaussians
from ..modeling.memory import Memory
from ..modeling.spatial_prior import Prior
from ..structures import Predictions, Size
from ..visualization.attention.views import AttentionView


@dataclass(frozen=True)
class CoAttentionRecord:
    """The co-attention of some decoder layers, for all images and queries.

    Attributes:
        layers: attention weights, memory and prior of each layer by its index.
        centers: ``centers`` of the predictions.
        sizes: (h, w) of the images that the model saw.
        output_sizes: (h, w) of the images in whose pixels points are given.
    """

    layers: dict[int, tuple[list[Tensor], Memory, object]]
    centers: Tensor | None
    sizes: Sequence[Size]
    output_sizes: Sequence[Size]

    def views(self, query: int, image: int = 0) -> list[AttentionView]:
        """Where one query looks in each layer."""
        size = np.array(self.output_sizes[image][::-1])
        factors = size / self.sizes[image][::-1]
        center = None
        if self.centers is not None:
            center = self.centers[image, query].cpu().numpy() * size
        views = []
        for layer, (weights, memory, prior) in self.layers.items():
            own = [scale[image, :, query].cpu() for scale in weights]  # (H, L_s) each
            start, selection, modulation = center, None, {}
            if isinstance(prior, Prior):
                best = 0
                if prior.selection is not None:
                    selection = prior.selection[image, query].cpu()
                    best = int(selection.argmax())
                pixels = factors * memory.strides[best]
                # A layer may start from the boxes of the one before.
                start = prior.start[image, query, best, 0].cpu().numpy() * pixels
                modulation = _gaussians(prior.gaussians, (image, query, best), len(own[0]), pixels)
            views.append(
                AttentionView(
                    layer=layer,
                    maps=_on_finest_map(own, memory, selection),
                    steps=factors * memory.strides[0],
                    strides=memory.strides,
                    shared_center=start,
                    scale_weights=None if selection is None else selection.numpy(),
                    **modulation,
                )
            )
        return views


@torch.no_grad()
def record_co_attention(
    detector: Detector,
    images: Tensor,
    sizes: Sequence[Size],
    *,
    output_sizes: Sequence[Size],
    layers: Sequence[int] = (-1,),
) -> tuple[Predictions, CoAttentionRecord]:
    """Run the detector and read the co-attention of some decoder layers.

    Args:
        detector: in evaluation mode; its decoder has attention maps.
        images, sizes: arguments of the detector.
        output_sizes: (h, w) of the images in whose pixels points are given.
        layers: indices of decoder layers; -1 is the last.
    """
    indices = range(len(detector.decoder.layers))
    attentions = {indices[layer]: detector.decoder.layers[layer].co_attention for layer in layers}
    inputs: dict[nn.Module, tuple] = {}

    def keep(attention: nn.Module, arguments: tuple) -> None:
        inputs[attention] = arguments

    # Compiled code calls no hooks.
    with contextlib.ExitStack() as hooks, torch.compiler.set_stance("force_eager"):
        for attention in attentions.values():
            hooks.enter_context(attention.register_forward_pre_hook(keep))
        predictions = detector(images, sizes)
    read = {
        layer: (attention.weights(*inputs[attention]), *inputs[attention][2:])
        for layer, attention in attentions.items()
    }
    return predictions, CoAttentionRecord(read, predictions.centers, sizes, output_sizes)


def _on_finest_map(weights: list[Tensor], memory: Memory, selection: Tensor | None) -> np.ndarray:
    """The sum of a query's weights on all scales, (H, L_s) each, on the finest map: (H, h, w).

    Each scale counts as ``selection`` (S,) says. The weight of a coarser scale's key is spread over
    the cells that the key stands for, linearly from key to key.
    """
    rows, columns = memory.shapes[0]
    maps = torch.zeros(len(weights[0]), rows, columns)
    for scale, (shape, stride) in enumerate(zip(memory.shapes, memory.strides, strict=True)):
        factor = stride // memory.strides[0]
        fine = weights[scale].unflatten(-1, shape) / factor**2
        # Key (j, i) of a scale lies where key (j, i) * factor of the finest scale lies.
        height, width = ((side - 1) * factor + 1 for side in shape)
        fine = F.interpolate(fine[None], (height, width), mode="bilinear", align_corners=True)
        fine = F.pad(fine, (0, columns - width, 0, rows - height), mode="replicate")[0]
        maps += fine if selection is None else fine * selection[scale]
    return maps.numpy()


def _gaussians(
    gaussians: Gaussians, index: tuple[int, int, int], num_heads: int, pixels: np.ndarray
) -> dict[str, np.ndarray]:
    """Centres (H, 2) and covariances (H, 2, 2) of the image, query and scale of ``index``.

    They are in pixels, of which a cell has ``pixels`` (2,). log G = -rate d^T P d is a Gaussian of
    covariance (2 rate P)^-1. A small addition makes flat Gaussians wide instead of infinite.
    """
    xx, yy, xy = gaussians.precision[index].cpu().double().numpy().T  # (G,) each
    matrix = np.stack([xx, xy, xy, yy], axis=-1).reshape(-1, 2, 2)
    rate = float(gaussians.rate[index[-1]])
    covariance = np.linalg.inv(2 * rate * matrix + 1e-10 * np.eye(2)) * np.outer(pixels, pixels)
    center = gaussians.center[index].cpu().numpy() * pixels
    return {
        "head_centers": np.broadcast_to(center, (num_heads, 2)),
        "covariances": np.broadcast_to(covariance, (num_heads, 2, 2)),
    }
