"""The project's one attention: projections, a fused kernel, and biases given as inner products.

Shapes: B images, N queries, L keys, H heads, d channels a head, C = H * d, E extra channels.

Some biases on the attention logits are inner products of a vector of the query and a vector of the
key. Appended to the channels of queries and keys they cost nothing: any fused kernel computes them
exactly, and no (N, L) matrix exists. SMCA's log G and the padding mask both have this form.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import full_precision, linear, per_scale

# CUDA's fused kernels want the channels of a head in multiples of this; a CPU's are faster so.
_CHANNEL_MULTIPLE = 8
# The bias of a padded key is minus the square of this: far beyond any logit. Float16 holds it.
PADDING = 6e4


@dataclass(frozen=True)
class LogitBias:
    """A bias on attention logits: the inner product of ``query`` and ``key``.

    Attributes:
        query: (B, H or 1, N or 1, E).
        key: (B or 1, 1, L, E).
    """

    query: Tensor
    key: Tensor


def padding_biases(padding: Tensor | None) -> list[LogitBias]:
    """Make the bias that gives padded keys no weight; without padding there is none.

    Where all keys of an image are padding, their weights sum to one nevertheless. This does not
    happen in the detector, as every image has a cell of every map.

    Args:
        padding: (B, L) bool, True where a key is padding.
    """
    if padding is None:
        return []
    key = torch.where(padding, -PADDING, 0.0)[:, None, :, None]
    query = torch.full((1, 1, 1, 1), PADDING, device=padding.device)
    return [LogitBias(query=query, key=key)]


def _with_biases(query: Tensor, key: Tensor, biases: Sequence[LogitBias]) -> tuple[Tensor, Tensor]:
    """Scale queries, append the biases' channels, and fill up to a multiple for the kernel."""
    query = query * query.shape[-1] ** -0.5
    queries, keys = [query], [key]
    for bias in biases:
        # In float16 the gradient of padding's keys overflows, but only in a channel of its own
        # that nothing reads.
        queries.append(bias.query.to(query.dtype).expand(*query.shape[:-1], -1))
        keys.append(bias.key.to(key.dtype).expand(*key.shape[:-1], -1))
    fill = -sum(part.shape[-1] for part in queries) % _CHANNEL_MULTIPLE
    if fill:
        queries.append(query.new_zeros(1).expand(*query.shape[:-1], fill))
        keys.append(key.new_zeros(1).expand(*key.shape[:-1], fill))
    if len(queries) == 1:
        return query, key
    return torch.cat(queries, dim=-1), torch.cat(keys, dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    biases: Sequence[LogitBias] = (),
    dropout: float = 0.0,
) -> Tensor:
    """softmax(query key^T / sqrt(d) + biases) value on a fused kernel (Eqs. 1, 2, 5, 6).

    Args:
        query: (B, H, N, d), like the result.
        key, value: (B, H, L, d).
        biases: added to the logits.
        dropout: probability of dropping an attention weight.
    """
    channels = value.shape[-1]
    query, key = _with_biases(query, key, biases)
    if query.shape[-1] != channels:
        value = F.pad(value, (0, query.shape[-1] - channels))
    out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=1.0)
    return out[..., :channels]


def attention_weights(query: Tensor, key: Tensor, *, biases: Sequence[LogitBias] = ()) -> Tensor:
    """Compute the weights (B, H, N, L) that :func:`attend` uses, for pictures of a few queries."""
    query, key = _with_biases(query, key, biases)
    dtype = torch.promote_types(query.dtype, torch.float32)  # kernels sum in it
    with full_precision(query.device):
        return (query.to(dtype) @ key.to(dtype).transpose(-2, -1)).softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head attention: four projections around :func:`attend`."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        dropout: float = 0.0,
        query_sets: int = 1,
        key_sets: int = 1,
        gain: float = math.sqrt(0.5),
    ):
        """
        Args:
            dim, num_heads: C and H.
            dropout: probability of dropping an attention weight in training.
            query_sets: sets of weights of the query and output projections: 1, or one a scale.
            key_sets: the same for the key and value projections.
            gain: of the Xavier-uniform start of queries, keys and values; by default that of one
                (3C, C) matrix.
        """
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = per_scale(lambda: linear(dim, dim, gain=gain), query_sets)
        self.k_proj = per_scale(lambda: linear(dim, dim, gain=gain), key_sets)
        self.v_proj = per_scale(lambda: linear(dim, dim, gain=gain), key_sets)
        self.out_proj = per_scale(lambda: linear(dim, dim), query_sets)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, H, N, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def merge_heads(x: Tensor) -> Tensor:
        """(B, H, N, d) -> (B, N, C)."""
        return x.transpose(1, 2).flatten(-2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, biases: Sequence[LogitBias] = ()
    ) -> Tensor:
        """:func:`attend` with this module's dropout."""
        dropout = self.dropout if self.training else 0.0
        return attend(query, key, value, biases=biases, dropout=dropout)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, biases: Sequence[LogitBias] = ()
    ) -> Tensor:
        """Attend from queries (B, N, C) to keys and values (B, L, C): (B, N, C)."""
        out = self.attend(
            self.split_heads(self.q_proj(query)),
            self.split_heads(self.k_proj(key)),
            self.split_heads(self.v_proj(value)),
            biases,
        )
        return self.out_proj(self.merge_heads(out))
