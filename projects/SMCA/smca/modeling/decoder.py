"""DETR's decoder, which the others of the family are made from.

Shapes: B images, N queries, L keys, C channels, H heads, d = C / H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, attention_weights, padding_biases
from .layers import FFN, compute_dtype, full_precision
from .memory import Memory
from .registry import SMCA_DECODER_REGISTRY


class QuerySelfAttention(Attention):
    """Self-attention among queries."""

    def forward(self, target: Tensor, position: Tensor) -> Tensor:
        """
        Args:
            target, position: (B, N, C), content and query embedding.

        Returns:
            (B, N, C).
        """
        placed = target + position
        placed = placed.to(compute_dtype(placed))  # once for queries and keys
        return super().forward(placed, placed, target)


class CoAttention(Attention):
    """Queries attend to all tokens of the image (Eqs. 1, 2)."""

    def project(self, target: Tensor, position: Tensor, memory: Memory) -> tuple[Tensor, ...]:
        """Queries (B, H, N, d), and keys and values (B, H, L, d)."""
        return (
            self.split_heads(self.q_proj(target + position)),
            self.split_heads(self.k_proj(memory.keys())),
            self.split_heads(self.v_proj(memory.tokens)),
        )

    def forward(self, target: Tensor, position: Tensor, memory: Memory, prior: object) -> Tensor:
        """
        Args:
            target, position: (B, N, C), content and query embedding.
            memory: the encoded image.
            prior: what the decoder gives its layers; DETR's gives nothing.

        Returns:
            (B, N, C).
        """
        query, key, value = self.project(target, position, memory)
        out = self.attend(query, key, value, padding_biases(memory.padding))
        return self.out_proj(self.merge_heads(out))

    def weights(
        self, target: Tensor, position: Tensor, memory: Memory, prior: object
    ) -> list[Tensor]:
        """The attention weights on each scale, (B, H, N, L_s), for pictures."""
        query, key, _ = self.project(target, position, memory)
        weights = attention_weights(query, key, biases=padding_biases(memory.padding))
        return list(weights.split(memory.lengths, dim=-1))


class DecoderLayer(nn.Module):
    """Post-norm layer: self-attention among queries, co-attention, FFN."""

    def __init__(
        self,
        *,
        dim: int,
        ffn_dim: int,
        dropout: float,
        self_attention: nn.Module,
        co_attention: nn.Module,
    ):
        """
        Args:
            dim: C.
            ffn_dim: hidden width of the FFN.
            dropout: after attention, inside and after the FFN.
            self_attention: maps content and query embedding (B, N, C) to (B, N, C).
            co_attention: maps these, a memory and the decoder's prior to (B, N, C).
        """
        super().__init__()
        self.self_attention = self_attention
        self.norm1 = nn.LayerNorm(dim)
        self.co_attention = co_attention
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FFN(dim, ffn_dim, dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, position: Tensor, memory: Memory, prior: object) -> Tensor:
        attended = self.self_attention(target, position)
        target = self.norm1(target + self.dropout(attended))
        attended = self.co_attention(target, position, memory, prior)
        target = self.norm2(target + self.dropout(attended))
        return self.norm3(target + self.dropout(self.ffn(target)))


class Decoder(nn.Module):
    """Learned queries, which layer by layer attend to each other and to the image.

    What a decoder of the family adds stands in :meth:`initial_reference`, :meth:`places` and
    :meth:`prior`.
    """

    def __init__(self, *, num_queries: int, dim: int, layers: Sequence[DecoderLayer]):
        """
        Args:
            num_queries: N.
            dim: C.
            layers: first to last.
        """
        super().__init__()
        self.query_embed = nn.Embedding(num_queries, dim)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            "num_layers": smca.DECODER.NUM_LAYERS,
            "num_queries": smca.NUM_QUERIES,
            "dim": smca.HIDDEN_DIM,
            "num_heads": smca.NHEADS,
            "ffn_dim": smca.DIM_FEEDFORWARD,
            "dropout": smca.DROPOUT,
            "attention_dropout": smca.ATTENTION_DROPOUT,
        }

    def initial_reference(self, position: Tensor) -> Tensor | None:
        """Where each query looks first, from its embedding (B, N, C): (B, N, 2) logits x, y."""
        raise NotImplementedError

    def places(self, reference: Tensor | None, memory: Memory) -> object:
        """What the priors of all layers share, made once: places of references and keys.

        Args:
            reference: (B, N, 2), of :meth:`initial_reference`.
            memory: the encoded image.
        """
        return None

    def prior(self, number: int, target: Tensor, position: Tensor, places: Any) -> object:
        """What layer ``number`` gives its co-attention besides content and query embedding.

        It runs in the precision of the weights, float32, whatever autocast says.

        Args:
            number: of the layer, from 0.
            target, position: (B, N, C), the layer's input and the query embedding.
            places: of :meth:`places`.
        """
        raise NotImplementedError

    def forward(self, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """
        Returns:
            the normed outputs of the layers (layers, B, N, C), in evaluation of the last one only,
            and the initial references (B, N, 2) as logits, x before y, if there are any.
        """
        position = self.query_embed.weight.expand(memory.tokens.shape[0], -1, -1)
        target = torch.zeros_like(position)
        memory = memory.for_decoder()
        # Places need it.
        with full_precision(position.device):
            reference = self.initial_reference(position)
        places = self.places(reference, memory)
        hidden = []
        for number, layer in enumerate(self.layers):
            with full_precision(position.device):
                prior = self.prior(number, target.to(position.dtype), position, places)
            target = layer(target, position, memory, prior)
            hidden.append(target)
        outputs = hidden if self.training else hidden[-1:]
        return self.norm(torch.stack(outputs)), reference


@SMCA_DECODER_REGISTRY.register()
class DETRDecoder(Decoder):
    """Queries that look anywhere (DETR, arXiv 2005.12872)."""

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
    ):
        """
        Args:
            num_layers: decoder layers.
            num_queries: N.
            dim: C.
            num_heads: H.
            ffn_dim: hidden width of the FFN.
            dropout: after attention, inside and after the FFN.
            attention_dropout: on attention weights.
        """
        heads: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "dropout": attention_dropout}
        layers = [
            DecoderLayer(
                dim=dim,
                ffn_dim=ffn_dim,
                dropout=dropout,
                self_attention=QuerySelfAttention(**heads),
                co_attention=CoAttention(**heads),
            )
            for _ in range(num_layers)
        ]
        super().__init__(num_queries=num_queries, dim=dim, layers=layers)

    def initial_reference(self, position: Tensor) -> None:
        """DETR's queries and boxes start from no place."""

    def prior(self, *_) -> None:
        """Nothing modulates DETR's co-attention."""
