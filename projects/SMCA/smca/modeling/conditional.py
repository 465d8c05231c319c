"""Conditional DETR's decoder: content and place are kept apart (arXiv 2108.06152).

Shapes: B images, N queries, L keys, C channels, H heads, d = C / H.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, attention_weights, padding_biases
from .decoder import Decoder, DecoderLayer
from .layers import MLP, linear
from .memory import Memory
from .position_encoding import sine_embedding
from .registry import SMCA_DECODER_REGISTRY


class ConditionalSelfAttention(Attention):
    """Self-attention among queries, with projections of their own for content and place."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float):
        super().__init__(dim=dim, num_heads=num_heads, dropout=dropout, gain=1.0)
        self.q_pos = linear(dim, dim)
        self.k_pos = linear(dim, dim)

    def forward(self, target: Tensor, position: Tensor) -> Tensor:
        """
        Args:
            target, position: (B, N, C), content and query embedding.

        Returns:
            (B, N, C).
        """
        out = self.attend(
            self.split_heads(self.q_proj(target) + self.q_pos(position)),
            self.split_heads(self.k_proj(target) + self.k_pos(position)),
            self.split_heads(self.v_proj(target)),
        )
        return self.out_proj(self.merge_heads(out))


class ConditionalCoAttention(Attention):
    """In each head, content looks for content and the spatial query for places.

    The logits are (c_q^T c_k + p_q^T p_k) / sqrt(2d).
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float, first: bool):
        """
        Args:
            dim, num_heads, dropout: see :class:`Attention`.
            first: in the first layer the content has places added, since that of the queries is
                zero.
        """
        super().__init__(dim=dim, num_heads=num_heads, dropout=dropout, gain=1.0)
        self.k_pos = linear(dim, dim)
        self.q_sine = linear(dim, dim)
        self.q_pos = linear(dim, dim) if first else None

    def project(
        self, target: Tensor, position: Tensor, memory: Memory, prior: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, H, N, 2d) and keys (B, H, L, 2d)."""
        query, key = self.q_proj(target), self.k_proj(memory.tokens)
        place = self.k_pos(memory.positions)
        if self.q_pos is not None:
            query, key = query + self.q_pos(position), key + place
        spatial = self.q_sine(prior(target))
        place = place.expand(key.shape[0], -1, -1)
        return (
            torch.cat((self.split_heads(query), self.split_heads(spatial)), dim=-1),
            torch.cat((self.split_heads(key), self.split_heads(place)), dim=-1),
        )

    def forward(
        self, target: Tensor, position: Tensor, memory: Memory, prior: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """
        Args:
            target, position: (B, N, C), content and query embedding.
            memory: the encoded image.
            prior: gives the spatial query (B, N, C) of ``target``.

        Returns:
            (B, N, C).
        """
        query, key = self.project(target, position, memory, prior)
        value = self.split_heads(self.v_proj(memory.tokens))
        out = self.attend(query, key, value, padding_biases(memory.padding))
        return self.out_proj(self.merge_heads(out))

    def weights(
        self, target: Tensor, position: Tensor, memory: Memory, prior: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """The attention weights on each scale, (B, H, N, L_s), for pictures."""
        query, key = self.project(target, position, memory, prior)
        weights = attention_weights(query, key, biases=padding_biases(memory.padding))
        return list(weights.split(memory.lengths, dim=-1))


@SMCA_DECODER_REGISTRY.register()
class ConditionalDecoder(Decoder):
    """Queries whose place is that of a reference point, transformed by what they have seen."""

    head_options = {"zero_boxes": True}

    def __init__(
        self,
        *,
        num_layers: int,
        num_queries: int,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        spatial_query: str = "CSQ",
        learned_reference: bool = False,
    ):
        """
        Args:
            num_layers, num_queries, dim, num_heads, ffn_dim, dropout, attention_dropout: see
                :class:`~smca.modeling.decoder.DETRDecoder`.
            spatial_query: how the spatial query is formed, see :meth:`spatial_query` (Table 3).
            learned_reference: reference points are parameters, instead of predicted from the
                query embeddings.
        """
        heads: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "dropout": attention_dropout}
        layers = [
            DecoderLayer(
                dim=dim,
                ffn_dim=ffn_dim,
                dropout=dropout,
                self_attention=ConditionalSelfAttention(**heads),
                co_attention=ConditionalCoAttention(**heads, first=number == 0),
            )
            for number in range(num_layers)
        ]
        super().__init__(num_queries=num_queries, dim=dim, layers=layers)
        self.reference: nn.Module = (
            nn.Embedding(num_queries, 2) if learned_reference else MLP(dim, dim, 2, 2, make=linear)
        )
        self.kind = spatial_query
        self.transform: nn.Module = nn.Identity()
        # The first layer has no use of it but in CSQ-T.
        if spatial_query == "CSQ-T" or (spatial_query in ("CSQ", "CSQ-I") and num_layers > 1):
            self.transform = MLP(dim, dim, dim, 2, make=linear)

    @classmethod
    def from_config(cls, cfg) -> dict:
        conditional = cfg.MODEL.SMCA.CONDITIONAL
        return {
            **super().from_config(cfg),
            "spatial_query": conditional.SPATIAL_QUERY,
            "learned_reference": conditional.REFERENCE == "parameter",
        }

    def initial_reference(self, position: Tensor) -> Tensor:
        """The reference points r."""
        if isinstance(self.reference, nn.Embedding):
            return self.reference.weight.expand(position.shape[0], -1, -1)
        return self.reference(position)

    def places(self, reference: Tensor, memory: Memory) -> Tensor:
        """p_s, the sine embedding of the reference points (B, N, C)."""
        angle = reference.sigmoid() * (2 * math.pi)
        channels = self.query_embed.embedding_dim // 2
        return torch.cat([sine_embedding(angle[..., axis], channels) for axis in (1, 0)], dim=-1)

    def prior(
        self, number: int, target: Tensor, position: Tensor, places: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """:meth:`spatial_query` but for its last argument, which the layer finds."""
        return partial(self.spatial_query, number, places, target)

    def spatial_query(self, number: int, sine: Tensor, content: Tensor, attended: Tensor) -> Tensor:
        """The spatial query p_q (B, N, C), before its projection.

        "CSQ" is p_s, the sine embedding of the reference point, times T(f), a transformation
        predicted from the layer's input f; "CSQ-I" predicts it from the output of the layer's
        self-attention. Both are p_s alone in the first layer, whose f is zero. "CSQ-P" is p_s
        alone in all layers, "CSQ-T" is T(f) alone and "CSQ-C" is f itself.

        Args:
            number: of the layer, from 0.
            sine: p_s, (B, N, C).
            content: f, (B, N, C).
            attended: (B, N, C), after self-attention.
        """
        if self.kind == "CSQ-C":
            return content
        if self.kind == "CSQ-T":
            return self.transform(content)
        if self.kind == "CSQ-P" or number == 0:
            return sine
        return sine * self.transform(attended if self.kind == "CSQ-I" else content)
