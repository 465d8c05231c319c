"""The prior of a decoder layer: it predicts the Gaussians that modulate the co-attention.

Shapes: B images, N queries, C channels, S scales, G Gaussians a query and scale (one a head, or 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PRECISION_CHANNELS
from .attention import LogitBias
from .gaussians import Gaussians, Grid
from .layers import compute_dtype, full_precision, linear
from .memory import Memory, numbers_on


@dataclass(frozen=True)
class Places:
    """The places of queries and keys, which the priors of all layers share.

    Attributes:
        start: (B, N, S, 1, 2), each query's initial centre, in cells of each scale's map.
        strides: (S,), pixels a cell.
        grid: where the keys are.
    """

    start: Tensor
    strides: Tensor
    grid: Grid

    @classmethod
    def of(cls, reference: Tensor, memory: Memory, *, oriented: bool) -> Places:
        """Queries start at ``reference``, x, y as logits (B, N, 2); keys are the memory's cells."""
        return cls(
            start=_start(reference, memory),
            strides=numbers_on(reference.device, memory.strides, reference.dtype),
            grid=Grid.of(
                memory.shapes,
                oriented=oriented,
                dtype=compute_dtype(memory.tokens),
                like=memory.valid_sizes,
                padding=None if memory.padding is None else memory.padding_by_scale(),
            ),
        )

    def starting_at(self, reference: Tensor, memory: Memory) -> Places:
        """The same keys for queries that start at another ``reference``."""
        return replace(self, start=_start(reference, memory))


def _start(reference: Tensor, memory: Memory) -> Tensor:
    return reference.sigmoid()[:, :, None, None] * memory.valid_sizes[:, None, :, None]


@dataclass(frozen=True)
class Prior:
    """The modulation of a decoder layer's co-attention.

    Attributes:
        start: see :class:`Places`.
        gaussians: where each head looks.
        biases: log G of each scale, together with the bias that leaves its padding out.
        selection: (B, N, S), how much each scale counts (Eq. 7); None: each counts 1.
    """

    start: Tensor
    gaussians: Gaussians
    biases: list[LogitBias]
    selection: Tensor | None


class SpatialPrior(nn.Module):
    """Predicts the offsets and scales of one decoder layer's heads, and its scale selection."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_scales: int,
        per_head: bool = True,
        kind: str = "independent",
        beta: float = 8.0,
        scale_selection: bool = True,
        centers: bool = False,
    ):
        """
        Args:
            dim, num_heads, num_scales: C, H and S.
            per_head: each head has offsets and scales of its own (Eq. 6); else all heads share one
                Gaussian at the centre (Eq. 5).
            kind: "fixed", "single", "independent" or "oriented" precision.
            beta: bandwidth; larger is wider.
            scale_selection: predict how much each scale counts (Eq. 7).
            centers: the centres, too, are predicted from what this layer observes.
        """
        super().__init__()
        self.num_scales = num_scales
        self.num_gaussians = num_heads if per_head else 1
        self.kind = kind
        self.beta = beta
        count = num_scales * self.num_gaussians
        self.offsets = linear(dim, count * 2) if per_head else None
        self.scales = None
        if channels := PRECISION_CHANNELS[kind]:
            self.scales = nn.Linear(dim, count * channels)
            # Every Gaussian starts with the same width.
            nn.init.zeros_(self.scales.weight)
            nn.init.ones_(self.scales.bias)
            if kind == "oriented":
                nn.init.zeros_(self.scales.bias.data.view(-1, channels)[:, 2])
        selects = scale_selection and num_scales > 1
        self.selection = linear(dim, num_scales) if selects else None
        predicts = (self.offsets, self.scales, self.selection)
        # A head-shared, fixed Gaussian has nothing to observe, but for the first layer's centre.
        observes = centers or any(part is not None for part in predicts)
        self.norm = nn.LayerNorm(dim) if observes else nn.Identity()

    # A compiler would take a float32 for itself rounded to a half precision and back, and the
    # parts that it is split into would no longer sum up to it.
    @torch.compiler.disable
    def forward(self, target: Tensor, position: Tensor, places: Places) -> Prior:
        """Predict in the precision of the weights, float32, whatever autocast says.

        Args:
            target, position: (B, N, C), the layer's input and the query embedding.
            places: where queries start and where keys are.
        """
        with full_precision(position.device):
            observed = self.norm(target + position)
            by_gaussian = (self.num_scales, self.num_gaussians, -1)
            center = places.start
            if self.offsets is not None:
                center = center + self.offsets(observed).unflatten(-1, by_gaussian)
            elif self.scales is None:
                center = center.expand(-1, -1, *by_gaussian[:2], -1)
            gaussians = Gaussians(
                center=center,
                precision=self._precision(observed, by_gaussian, center),
                rate=places.strides / (32 * self.beta),
            )
            return Prior(
                start=places.start,
                gaussians=gaussians,
                biases=gaussians.biases(places.grid),
                selection=None if self.selection is None else self.selection(observed).softmax(-1),
            )

    def _precision(self, observed: Tensor, by_gaussian: tuple[int, ...], center: Tensor) -> Tensor:
        """(B, N, S, G, 3): xx, yy, xy."""
        if self.scales is None:
            return F.pad(torch.ones_like(center), (0, 1))
        scales = self.scales(observed).unflatten(-1, by_gaussian)
        if self.kind == "oriented":
            # P = L L^T with L = [[x, 0], [slant, y]].
            x, y, slant = scales.unbind(-1)
            return torch.stack((x * x, y * y + slant * slant, x * slant), dim=-1)
        return F.pad(scales.square().expand(*scales.shape[:-1], 2), (0, 1))
