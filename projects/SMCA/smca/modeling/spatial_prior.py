"""The Gaussian that modulates the co-attention (Eqs. 3-6), as a bias of four or five channels.

Shapes: B images, N queries, C channels, S scales, G Gaussians a query and scale (one a head, or 1).

log G is a quadratic form in the key's position, so that, up to a term that is constant in the key
and that softmax drops, it is an inner product of five numbers of the query with x^2, y^2, xy, x and
y of the key. Positions are counted from the middle of the map, which keeps the numbers small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import PRECISION_CHANNELS
from .attention import LogitBias
from .layers import MLP, linear
from .memory import Memory, Size

# Of the factors of log G that belong to the query; float16 ends at 65504.
_LARGEST = 2.0**15


@dataclass(frozen=True)
class Gaussians:
    """One Gaussian a query, head and scale.

    Attributes:
        center: (B, N, S, G, 2), x before y, in cells of the scale's map, cell 0 at 0.
        precision: (B, N, S, G, 3): xx, yy and xy of the symmetric matrix P.
        rate: (S,) such that log G = -rate * (p - center)^T P (p - center).
    """

    center: Tensor
    precision: Tensor
    rate: tuple[float, ...]

    def bias(self, scale: int, shape: Size, *, oriented: bool) -> LogitBias:
        """log G of one scale, less what is constant in the key, on a map of ``shape`` cells."""
        rows, columns = shape
        cx, cy = self.center[:, :, scale].unbind(-1)  # (B, N, G)
        cx, cy = cx - columns // 2, cy - rows // 2
        xx, yy, xy = (self.precision[:, :, scale] * self.rate[scale]).unbind(-1)
        squares = [-xx, -yy, -2 * xy] if oriented else [-xx, -yy]
        factors = [*squares, 2 * (xx * cx + xy * cy), 2 * (yy * cy + xy * cx)]
        query = torch.stack(factors, dim=-1).transpose(1, 2)  # (B, G, N, E)
        # A Gaussian far narrower than a cell is made wider, about its centre, but stays narrower.
        # Half precisions then hold these numbers, and padding's bias is beyond what they make.
        largest = query.detach().abs().amax(dim=-1, keepdim=True)
        return LogitBias(
            query=query * (_LARGEST / largest.clamp(min=_LARGEST)),
            key=_monomials(shape, self.center, oriented=oriented),
            # Squares of coordinates take more bits than a half precision has, coordinates do not.
            key_parts=(2,) * len(squares) + (1, 1),
        )

    def log_density(self, scale: int, points: Tensor) -> Tensor:
        """log G, unnormalised and at most 0, at ``points`` (L, 2) in cells: (B, G, N, L)."""
        dx, dy = (points - self.center[:, :, scale, :, None]).unbind(-1)  # (B, N, G, L)
        xx, yy, xy = (self.precision[:, :, scale, :, None] * self.rate[scale]).unbind(-1)
        return -(xx * dx**2 + yy * dy**2 + 2 * xy * dx * dy).transpose(1, 2)


def _monomials(shape: Size, like: Tensor, *, oriented: bool) -> Tensor:
    """x^2, y^2, xy where ``oriented``, x and y of each cell, counted from the middle of the map:
    (1, 1, L, 4 or 5).
    """
    rows, columns = shape
    device = like.device
    x = torch.arange(columns, device=device) - columns // 2
    y = torch.arange(rows, device=device) - rows // 2
    y, x = torch.meshgrid(y, x, indexing="ij")
    squares = [x * x, y * y, x * y] if oriented else [x * x, y * y]
    return torch.stack((*squares, x, y), dim=-1).flatten(0, 1).to(like)[None, None]


@dataclass(frozen=True)
class Prior:
    """What a decoder layer's co-attention is modulated with.

    Attributes:
        gaussians: where each head looks.
        biases: log G of each scale.
        selection: (B, N, S), how much each scale counts (Eq. 7); None: each counts 1.
    """

    gaussians: Gaussians
    biases: list[LogitBias]
    selection: Tensor | None


class SpatialPrior(nn.Module):
    """Predicts head-specific offsets, scales and scale-selection weights of one decoder layer."""

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
            dim: C.
            num_heads: H.
            num_scales: S.
            per_head: offsets and scales of its own for each head (Eq. 6), or one Gaussian at the
                centre for all heads (Eq. 5).
            kind: "fixed", "single", "independent" or "oriented" precision.
            beta: bandwidth; larger is wider.
            scale_selection: predict how much each scale counts (Eq. 7).
            centers: the centres are predicted from what this layer observes.
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
        self.selection = None
        if scale_selection and num_scales > 1:
            self.selection = linear(dim, num_scales)
        predicts = (self.offsets, self.scales, self.selection)
        # A head-shared, fixed Gaussian has nothing to observe, but for the first layer's centre.
        observes = centers or any(part is not None for part in predicts)
        self.norm = nn.LayerNorm(dim) if observes else nn.Identity()

    def forward(self, observed: Tensor, reference: Tensor, memory: Memory) -> Prior:
        """
        Args:
            observed: (B, N, C), the normed target with its query embedding.
            reference: (B, N, 2), initial centre x, y as logits.
            memory: for the places of the keys.
        """
        by_gaussian = (self.num_scales, self.num_gaussians, -1)
        extent = memory.extent[:, None, :, None]  # (B, 1, S, 1, 2)
        center = reference.sigmoid()[:, :, None, None] * extent
        if self.offsets is not None:
            center = center + self.offsets(observed).unflatten(-1, by_gaussian)
        elif self.scales is None:
            center = center.expand(-1, -1, *by_gaussian[:2], -1)
        gaussians = Gaussians(
            center=center,
            precision=self._precision(observed, by_gaussian, center),
            rate=tuple(stride / 32 / self.beta for stride in memory.strides),
        )
        oriented = self.kind == "oriented"
        return Prior(
            gaussians=gaussians,
            biases=[
                gaussians.bias(scale, shape, oriented=oriented)
                for scale, shape in enumerate(memory.shapes)
            ],
            selection=None if self.selection is None else self.selection(observed).softmax(-1),
        )

    def _precision(self, observed: Tensor, by_gaussian: tuple[int, ...], center: Tensor) -> Tensor:
        """(B, N, S, G, 3): xx, yy, xy."""
        if self.scales is None:
            ones = torch.ones_like(center)
            return torch.cat((ones, torch.zeros_like(ones[..., :1])), dim=-1)
        scales = self.scales(observed).unflatten(-1, by_gaussian)
        if self.kind == "oriented":
            # P = L L^T with L = [[x, 0], [slant, y]].
            x, y, slant = scales.unbind(-1)
            return torch.stack((x * x, y * y + slant * slant, x * slant), dim=-1)
        square = scales.square().expand(*scales.shape[:-1], 2)
        return torch.cat((square, torch.zeros_like(square[..., :1])), dim=-1)


def center_mlp(dim: int, num_layers: int) -> MLP:
    """The MLP that predicts a query's initial centre as logits x, y (Eq. 3)."""
    return MLP(dim, dim, 2, num_layers, make=linear)
