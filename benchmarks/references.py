"""Other forms of attention with the signature of :func:`smca.modeling.attention.attend`.

Shapes: B images, N queries, L keys, H heads, d channels per head, G Gaussians per query.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from smca.modeling import attention
from smca.modeling.attention import PADDING, LogitBias, attend
from smca.modeling.gaussians import Gaussians, Grid

# The attention of the public implementations in training, and the recipe's dropout probability.
UNFUSED_RECIPE, RECIPE_DROPOUT = "unfused, dropout", 0.1


@dataclass(frozen=True)
class Matrix:
    """A bias on attention logits as a full matrix: (B, G, N, L), in float32."""

    logits: Tensor


def log_densities(gaussians: Gaussians, grid: Grid) -> list[Matrix]:
    """Replace :meth:`Gaussians.biases`: return log G of every cell of each map by Eqs. 4-6."""
    return [_log_density(gaussians, grid, scale) for scale in range(len(grid.shapes))]


def _log_density(gaussians: Gaussians, grid: Grid, scale: int) -> Matrix:
    y, x = (torch.arange(float(n), device=gaussians.center.device) for n in grid.shapes[scale])
    y, x = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))
    cx, cy = gaussians.center[:, :, scale].transpose(1, 2)[..., None].unbind(-2)  # (B, G, N, 1)
    precision = gaussians.precision[:, :, scale].transpose(1, 2) * gaussians.rate[scale]
    xx, yy, xy = precision[..., None].unbind(-2)
    dx, dy = x - cx, y - cy  # (B, G, N, L)
    distance = xx * dx**2 + yy * dy**2
    logits = -(distance + 2 * xy * dx * dy if grid.oriented else distance)
    if grid.padded:
        logits = logits + PADDING * grid.keys[scale][..., -1].to(logits)[:, :, None]
    return Matrix(logits)


def dense(biases: Sequence[LogitBias | Matrix]) -> Tensor:
    """Return the sum of the biases as a matrix, in float32: (B or 1, G or 1, N or 1, L)."""
    matrices = (
        bias.logits if isinstance(bias, Matrix) else bias.query @ bias.key.transpose(-2, -1)
        for bias in biases
    )
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        return reduce(torch.add, matrices)


def unfused_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    biases: Sequence[LogitBias | Matrix] = (),
    dropout: float = 0.0,
) -> Tensor:
    """Attend by plain operations, each of which creates a tensor of (B, H, N, L)."""
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if biases:
        logits = logits + dense(biases)
    weights = F.dropout(logits.softmax(-1), dropout)
    return weights.to(value.dtype) @ value


def dropping_attend(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
    """Call :func:`unfused_attend` with the recipe's dropout in training, ignoring ``dropout``."""
    options["dropout"] = RECIPE_DROPOUT if torch.is_grad_enabled() else 0.0
    return unfused_attend(query, key, value, **options)


def dense_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    biases: Sequence[LogitBias | Matrix] = (),
    dropout: float = 0.0,
) -> Tensor:
    """Attend by torch's attention, with the biases as a dense mask."""
    mask = dense(biases).to(query.dtype) if biases else None
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


ATTENDS: dict[str, Callable[..., Tensor]] = {
    "fused": attend,
    "dense": dense_attend,
    "unfused": unfused_attend,
    UNFUSED_RECIPE: dropping_attend,
}


@contextmanager
def attention_replaced(name: str) -> Iterator[None]:
    """Replace the project's attention by one of ``ATTENDS``, and log G by the form it takes."""
    if name == "fused":
        yield
        return
    with (
        mock.patch.object(attention, "attend", ATTENDS[name]),
        mock.patch.object(Gaussians, "biases", log_densities),
    ):
        yield
