"""Attention as others write it, with the signature of :func:`smca.modeling.attention.attend`.

Shapes: B images, N queries, L keys, H heads, d channels a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import reduce
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from smca.modeling import attention
from smca.modeling.attention import LogitBias, attend


def dense(biases: Sequence[LogitBias]) -> Tensor:
    """The sum of biases as a matrix, in float32: (B or 1, H or 1, N or 1, L)."""
    with torch.autocast(biases[0].query.device.type, enabled=False):
        return reduce(torch.add, (bias.query @ bias.key.transpose(-2, -1) for bias in biases))


def unfused_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    biases: Sequence[LogitBias] = (),
    dropout: float = 0.0,
) -> Tensor:
    """Plain operations, each with a tensor of (B, H, N, L) as its result."""
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if biases:
        logits = logits + dense(biases)
    weights = F.dropout(logits.softmax(-1), dropout)
    return weights.to(value.dtype) @ value


def dense_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    biases: Sequence[LogitBias] = (),
    dropout: float = 0.0,
) -> Tensor:
    """torch's attention with the biases as a dense mask."""
    mask = dense(biases).to(query.dtype) if biases else None
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


ATTENDS: dict[str, Callable[..., Tensor]] = {
    "fused": attend,
    "dense": dense_attend,
    "unfused": unfused_attend,
}


def attention_replaced(by: Callable[..., Tensor]) -> AbstractContextManager:
    """All of the project's attention runs on ``by`` for a while."""
    return mock.patch.object(attention, "attend", by)
