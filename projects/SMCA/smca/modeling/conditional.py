"""Conditional DETR's decoder: content and place are kept apart (arXiv 2108.06152).

Shapes: B images, N queries, L keys, C channels, H heads, d = C / H.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention
from .decoder import CoAttention, DecoderLayer, QueryDecoder
from .layers import FFN, MLP, linear
from .memory import Memory
from .position_encoding import sine_embedding
from .registry import SMCA_DECODER_REGISTRY


class ConditionalSelfAttention(Attention):
    """Self-attention among queries, with separate projections of content and place."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float):
        super().__init__(dim=dim, num_heads=num_heads, dropout=dropout, gain=1.0)
        self.q_pos = linear(dim, dim)
        self.k_pos = linear(dim, dim)

    def forward(self, target: Tensor, position: Tensor) -> Tensor:
        """Attended content (B, N, C)."""
        out = self.attend(
            self.split_heads(self.q_proj(target) + self.q_pos(position)),
            self.split_heads(self.k_proj(target) + self.k_pos(position)),
            self.split_heads(self.v_proj(target)),
        )
        return self.out_proj(self.merge_heads(out))


class ConditionalCoAttention(CoAttention):
    """In each head, content looks for content and the spatial query for places.

    The logits are (c_q^T c_k + p_q^T p_k) / sqrt(2d). The guide is the layer's input, f (B, N, C),
    and the decoder's places: p_s (B, N, C), the sine embedding of the reference points, and T, an
    MLP that all layers share.
    """

    def __init__(self, *, kind: str, first: bool, **options: Any):
        """
        Args:
            kind: see :meth:`spatial_query`.
            first: it is in the first layer, where the queries' content is zero: places are added
                to the content of queries and keys.
            options: see :class:`Attention`.
        """
        super().__init__(gain=1.0, **options)
        self.kind = kind
        dim = options["dim"]
        self.k_pos = linear(dim, dim)
        self.q_sine = linear(dim, dim)
        self.q_pos = linear(dim, dim) if first else None

    def project(
        self,
        target: Tensor,
        position: Tensor,
        memory: Memory,
        guide: tuple[Tensor, tuple[Tensor, nn.Module]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, N, 2d), keys (B, H, L, 2d) and values (B, H, L, d)."""
        content, (sine, transform) = guide
        query, key = self.q_proj(target), self.k_proj(memory.tokens)
        place = self.k_pos(memory.positions)
        if self.q_pos is not None:
            query, key = query + self.q_pos(position), key + place
        spatial = self.q_sine(self.spatial_query(target, content, sine, transform))
        place = place.expand(key.shape[0], -1, -1)
        return (
            torch.cat((self.split_heads(query), self.split_heads(spatial)), dim=-1),
            torch.cat((self.split_heads(key), self.split_heads(place)), dim=-1),
            self.split_heads(self.v_proj(memory.tokens)),
        )

    def spatial_query(
        self, attended: Tensor, content: Tensor, sine: Tensor, transform: nn.Module
    ) -> Tensor:
        """Form the spatial query p_q (B, N, C), before its projection (Table 3).

        By ``kind`` it is "CSQ": p_s * T(f); "CSQ-I": p_s * T(attended), with the output of the
        layer's self-attention; "CSQ-T": T(f); "CSQ-C": f; or "CSQ-P": p_s.
        """
        if self.kind == "CSQ-P":
            return sine
        if self.kind == "CSQ-C":
            return content
        if self.kind == "CSQ-T":
            return transform(content)
        return sine * transform(attended if self.kind == "CSQ-I" else content)


class ConditionalLayer(DecoderLayer):
    """A layer that shows its input to its co-attention."""

    def guide(self, target: Tensor, position: Tensor, places: Any) -> tuple[Tensor, Any]:
        return target, places


@SMCA_DECODER_REGISTRY.register()
class ConditionalDecoder(QueryDecoder):
    """Queries that look around reference points, conditioned on their content."""

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
        query_groups: int = 1,
    ):
        """
        Args:
            num_layers, num_queries, dim, num_heads, ffn_dim, dropout, attention_dropout,
                query_groups: see :class:`~smca.modeling.decoder.DETRDecoder`.
            spatial_query: the kind of the spatial queries, see
                :meth:`ConditionalCoAttention.spatial_query`.
            learned_reference: reference points are parameters, instead of predicted from the
                query embeddings.
        """
        heads: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "dropout": attention_dropout}
        kinds = [spatial_query] * num_layers
        if spatial_query in ("CSQ", "CSQ-I"):
            kinds[0] = "CSQ-P"  # the first layer's content is zero
        layers = [
            ConditionalLayer(
                self_attention=ConditionalSelfAttention(**heads),
                co_attention=ConditionalCoAttention(**heads, kind=kind, first=number == 0),
                ffn=FFN(dim, ffn_dim, dropout),
                dim=dim,
                dropout=dropout,
            )
            for number, kind in enumerate(kinds)
        ]
        super().__init__(num_queries=num_queries, dim=dim, layers=layers, query_groups=query_groups)
        self.reference: nn.Module = (
            nn.Embedding(query_groups * num_queries, 2)
            if learned_reference
            else MLP(dim, dim, 2, 2, make=linear)
        )
        transforms = not {"CSQ", "CSQ-I", "CSQ-T"}.isdisjoint(kinds)
        self.transform = MLP(dim, dim, dim, 2, make=linear) if transforms else nn.Identity()

    @classmethod
    def from_config(cls, cfg) -> dict:
        conditional = cfg.MODEL.SMCA.CONDITIONAL
        return {
            **super().from_config(cfg),
            "spatial_query": conditional.SPATIAL_QUERY,
            "learned_reference": conditional.REFERENCE == "parameter",
        }

    def initial_reference(self, position: Tensor) -> Tensor:
        """The reference points."""
        if isinstance(self.reference, nn.Embedding):
            return self.in_use(self.reference).expand(position.shape[0], -1, -1)
        return self.reference(position)

    def places(self, reference: Tensor, memory: Memory) -> tuple[Tensor, nn.Module]:
        """The sine embedding p_s of the reference points, and the transformation T."""
        angle = reference.sigmoid().flip(-1) * (2 * math.pi)  # y before x
        sine = sine_embedding(angle, self.query_embed.embedding_dim // 2)
        return sine.flatten(-2), self.transform
