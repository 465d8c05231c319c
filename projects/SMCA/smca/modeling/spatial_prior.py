"""The Gaussian that modulates the co-attention (Eqs. 3-6), as a bias of a few channels.

Shapes: B images, N queries, C channels, S scales, G Gaussians a query and scale (one a head, or 1),
L keys of a scale.

log G is a quadratic form in the key's position. It is therefore an inner product of a few numbers
of the query with x^2, y^2, xy, x, y and 1 of the key. Positions are counted from the middle of the
map, which keeps the numbers small. The 1 changes no attention weight, but its gradient cancels what
rounding leaves in those of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PRECISION_CHANNELS
from ..structures import Size
from .attention import PADDING, LogitBias, padding_biases
from .layers import MLP, compute_dtype, linear
from .memory import Memory, numbers_on

# Of the factors of log G that belong to the query; float16 ends at 65504.
_LARGEST = 2.0**14
# In place of 1, so that the query's factor is no larger than the others.
_ONE = 2.0**8
# So many numbers of a half precision sum up to a float32 of 24 bits: they have 11 and 8 each.
PARTS = {torch.float16: 2, torch.bfloat16: 3}


@dataclass(frozen=True)
class Grid:
    """Where the keys of each scale are: their factors of log G, which all layers share.

    Attributes:
        shapes: (rows, columns) of each scale's map.
        keys: of each scale (B or 1, 1, L, E), in the type that attention computes in; the last
            factor is that of padding, where there is some.
        middle: (S, 2), the cell x, y that places are counted from.
        oriented: there is a factor of xy.
        padded: there is padding.
    """

    shapes: Sequence[Size]
    keys: list[Tensor]
    middle: Tensor
    oriented: bool
    padded: bool

    @classmethod
    def of(
        cls,
        shapes: Sequence[Size],
        *,
        oriented: bool,
        dtype: torch.dtype,
        like: Tensor,
        padding: Sequence[Tensor | None] | None = None,
    ) -> Grid:
        """
        Args:
            shapes: (rows, columns) of each scale's map.
            oriented: log G has a term of xy.
            dtype: what attention computes in.
            like: of the device and type of the Gaussians.
            padding: (B, L) of each scale, True where a key is padding.
        """
        keys = []
        for scale, (rows, columns) in enumerate(shapes):
            x = torch.arange(columns, device=like.device) - columns // 2
            y = torch.arange(rows, device=like.device) - rows // 2
            y, x = torch.meshgrid(y, x, indexing="ij")
            squares = [-x * x, -y * y, -2 * x * y] if oriented else [-x * x, -y * y]
            factors = torch.stack((*squares, 2 * x, 2 * y, torch.full_like(x, -_ONE)), dim=-1)
            key = _key_channels(factors.flatten(0, 1).to(like), len(squares), dtype)[None, None]
            if padding is not None:
                (bias,) = padding_biases(padding[scale])
                extra = bias.key.to(dtype)
                key = torch.cat((key.expand(len(extra), -1, -1, -1), extra), dim=-1)
            keys.append(key)
        middle = [(columns // 2, rows // 2) for rows, columns in shapes]
        return cls(
            shapes=shapes,
            keys=keys,
            middle=numbers_on(like.device, middle, like.dtype),
            oriented=oriented,
            padded=padding is not None,
        )


def _key_channels(factors: Tensor, num_squares: int, dtype: torch.dtype) -> Tensor:
    """Factors (L, E) of keys as channels of ``dtype``, for those of :func:`_query_channels`.

    A half precision gets a channel for each pair of numbers that the query's and the key's factor
    are split into, so that the products, which kernels sum in float32, add up to the exact ones.
    Squares have more bits than a half precision, coordinates do not.
    """
    if dtype not in PARTS:
        return factors.to(dtype)
    first, second = _split(factors, 2, dtype)
    return torch.cat([first] * PARTS[dtype] + [second[..., :num_squares]] * PARTS[dtype], dim=-1)


def _query_channels(factors: Tensor, num_squares: int, dtype: torch.dtype) -> Tensor:
    """Factors (..., E) of queries as channels of ``dtype``."""
    if dtype not in PARTS:
        return factors.to(dtype)
    parts = _split(factors, PARTS[dtype], dtype)
    # Slices: an index that is a list would be copied to the device, which waits.
    return torch.cat([*parts, *(part[..., :num_squares] for part in parts)], dim=-1)


def _split(x: Tensor, count: int, dtype: torch.dtype) -> list[Tensor]:
    """``count`` tensors of ``dtype`` that sum up to ``x``.

    Only the first passes on a gradient: all of them would pass the same one, that of the sum.
    """
    parts = [x.to(dtype)]
    rest = x.detach()
    for _ in range(count - 1):
        rest = rest - parts[-1].detach().to(rest.dtype)
        parts.append(rest.to(dtype))
    return parts


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
    rate: Tensor

    def biases(self, grid: Grid) -> list[LogitBias]:
        """log G of each scale, and what leaves its padding out."""
        place = self.center - grid.middle[:, None]
        squares, cross = (self.precision * self.rate[:, None, None]).split((2, 1), dim=-1)
        moments = squares * place
        if grid.oriented:
            moments = moments + cross * place.flip(-1)
            squares = torch.cat((squares, cross), dim=-1)
        constant = (moments * place).sum(-1, keepdim=True) / _ONE
        query = torch.cat((squares, moments, constant), dim=-1)
        # A Gaussian far narrower than a cell is made wider, about its centre, but stays narrower.
        # Half precisions then hold these numbers, and padding's bias is beyond what they make.
        largest = query.detach().abs().amax(dim=-1, keepdim=True)
        query = query / (largest / _LARGEST).clamp(min=1)
        dtype = grid.keys[0].dtype
        query = _query_channels(query, 3 if grid.oriented else 2, dtype)
        if grid.padded:
            query = F.pad(query, (0, 1), value=PADDING)
        query = query.permute(2, 0, 3, 1, 4)  # (S, B, G, N, E)
        return [LogitBias(query=q, key=k) for q, k in zip(query.unbind(), grid.keys, strict=True)]

    def log_density(self, scale: int, points: Tensor) -> Tensor:
        """log G, unnormalised and at most 0, at ``points`` (L, 2) in cells: (B, G, N, L)."""
        dx, dy = (points - self.center[:, :, scale, :, None]).unbind(-1)  # (B, N, G, L)
        xx, yy, xy = (self.precision[:, :, scale, :, None] * self.rate[scale]).unbind(-1)
        return -(xx * dx**2 + yy * dy**2 + 2 * xy * dx * dy).transpose(1, 2)


@dataclass(frozen=True)
class Places:
    """What the priors of all layers share.

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
        """
        Args:
            reference: (B, N, 2), initial centre x, y as logits.
            memory: the encoded image.
            oriented: log G has a term of xy.
        """
        return cls(
            start=reference.sigmoid()[:, :, None, None] * memory.extent[:, None, :, None],
            strides=numbers_on(reference.device, memory.strides, reference.dtype),
            grid=Grid.of(
                memory.shapes,
                oriented=oriented,
                dtype=compute_dtype(memory.tokens),
                like=memory.extent,
                padding=None if memory.padding is None else memory.padding_by_scale(),
            ),
        )


@dataclass(frozen=True)
class Prior:
    """What a decoder layer's co-attention is modulated with.

    Attributes:
        gaussians: where each head looks.
        biases: log G of each scale, and what leaves its padding out.
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

    def forward(self, observed: Tensor, places: Places) -> Prior:
        """
        Args:
            observed: (B, N, C), the normed target with its query embedding.
            places: of the queries' references and of the keys.
        """
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
            gaussians=gaussians,
            biases=gaussians.biases(places.grid),
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
