"""DETR's decoder, which the other decoders of the family build upon.

Co-attention is the paper's word for cross-attention: queries attend to the image.

Shapes: B images, N queries, L keys, C channels, H heads, d = C / H. Throughout, ``target``
(B, N, C) is the content of the queries and ``position`` (B, N, C) their embedding. In training N
counts the queries of all groups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..structures import NoisedQueries
from .attention import Attention, attention_weights, padding_biases
from .layers import FFN, ResidualBlock, apply_per_scale, compute_dtype, full_precision
from .memory import Memory
from .parts import Decoder
from .registry import SMCA_DECODER_REGISTRY


def by_group(queries: Tensor, groups: int) -> Tensor:
    """Make groups of queries rows of the batch: (..., B, G * N, C) -> (..., B * G, N, C)."""
    return queries if groups == 1 else queries.unflatten(-2, (groups, -1)).flatten(-4, -3)


class QuerySelfAttention(Attention):
    """Self-attention among queries."""

    def forward(self, target: Tensor, position: Tensor, idle: Tensor | None = None) -> Tensor:
        """Attended content (B, N, C); nobody attends to ``idle`` queries (B, N)."""
        with_pos = target + position
        with_pos = with_pos.to(compute_dtype(with_pos))  # once for queries and keys
        return super().forward(with_pos, with_pos, target, padding_biases(idle))


class CoAttention(Attention):
    """Queries attend to all tokens of the image (Eqs. 1, 2)."""

    def project(
        self, target: Tensor, position: Tensor, memory: Memory, guide: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, N, d), keys and values (B, H, L, d)."""
        return (
            self.split_heads(self.q_proj(target + position)),
            self.split_heads(apply_per_scale(self.k_proj, memory.keys(), memory.lengths)),
            self.split_heads(apply_per_scale(self.v_proj, memory.tokens, memory.lengths)),
        )

    def forward(
        self, target: Tensor, position: Tensor, memory: Memory, guide: Any = None
    ) -> Tensor:
        """Attended content (B, N, C); ``guide`` says where to look, here nothing: anywhere."""
        query, key, value = self.project(target, position, memory, guide)
        out = self.attend(query, key, value, padding_biases(memory.padding))
        return self.out_proj(self.merge_heads(out))

    def weights(
        self, target: Tensor, position: Tensor, memory: Memory, guide: Any = None
    ) -> list[Tensor]:
        """The attention weights on each scale, (B, H, N, L_s), for pictures."""
        query, key, _ = self.project(target, position, memory, guide)
        weights = attention_weights(query, key, biases=padding_biases(memory.padding))
        return list(weights.split(memory.lengths, dim=-1))


class DecoderLayer(ResidualBlock):
    """Self-attention among queries, co-attention, FFN."""

    def __init__(
        self,
        *,
        self_attention: nn.Module,
        co_attention: nn.Module,
        ffn: nn.Module,
        dim: int,
        dropout: float,
        pre_norm: bool = False,
    ):
        """
        Args:
            self_attention: maps target and position to (B, N, C).
            co_attention: maps these, a memory and a guide to (B, N, C).
            ffn: maps (B, N, C) to (B, N, C).
            dropout, pre_norm: see :class:`ResidualBlock`.
        """
        super().__init__(dropout=dropout, pre_norm=pre_norm)
        self.self_attention = self_attention
        self.norm1 = nn.LayerNorm(dim)
        self.co_attention = co_attention
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = ffn
        self.norm3 = nn.LayerNorm(dim)

    def guide(self, target: Tensor, position: Tensor, places: Any) -> Any:
        """Make the guide of the co-attention from the layer's input and the decoder's places."""
        return places

    def forward(
        self,
        target: Tensor,
        position: Tensor,
        memory: Memory,
        places: Any,
        groups: int = 1,
        noised: NoisedQueries | None = None,
    ) -> Tensor:
        """Return the new content (B, N, C).

        Args:
            places: where queries start and where keys are.
            groups: queries attend to those of their own group, of so many.
            noised: the last queries, which attend to those of their own set.
        """
        guide = self.guide(target, position, places)
        target = self.residual(
            target, lambda x: self._among_queries(x, position, groups, noised), self.norm1
        )
        target = self.residual(
            target, lambda x: self.co_attention(x, position, memory, guide), self.norm2
        )
        return self.residual(target, self.ffn, self.norm3)

    def _among_queries(
        self, target: Tensor, position: Tensor, groups: int, noised: NoisedQueries | None
    ) -> Tensor:
        """Self-attention. As rows of the batch, groups and sets are apart without a mask."""
        count = len(noised) if noised is not None else 0
        if noised is None or not count:
            among = by_group(target, groups), by_group(position, groups)
            return self.self_attention(*among).view_as(target)
        main, places = target[:, :-count], position[:, :-count]
        among = by_group(main, groups), by_group(places, groups)
        rest, places = target[:, -count:], position[:, -count:]
        sets = by_group(rest, noised.sets), by_group(places, noised.sets)
        idle = None if noised.idle is None else noised.idle.repeat_interleave(noised.sets, 0)
        parts = self.self_attention(*among).view_as(main), self.self_attention(*sets, idle)
        return torch.cat((parts[0], parts[1].view_as(rest)), dim=1)


class QueryDecoder(Decoder):
    """Learned queries, which layer by layer attend to each other and to the image.

    A decoder of the family overrides :meth:`initial_reference` and :meth:`places`, and its layers
    make guides of the places.
    """

    has_attention_maps = True

    def __init__(
        self, *, num_queries: int, dim: int, layers: Sequence[DecoderLayer], query_groups: int = 1
    ):
        super().__init__()
        self.query_groups = query_groups
        self.query_embed = nn.Embedding(query_groups * num_queries, dim)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            "num_layers": smca.DECODER.NUM_LAYERS,
            "num_queries": smca.NUM_QUERIES,
            "query_groups": smca.QUERY_GROUPS,
            "dim": smca.HIDDEN_DIM,
            "num_heads": smca.NHEADS,
            "ffn_dim": smca.DIM_FEEDFORWARD,
            "dropout": smca.DROPOUT,
            "attention_dropout": smca.ATTENTION_DROPOUT,
        }

    def initial_reference(self, position: Tensor) -> Tensor | None:
        """Predict where queries look first and boxes start: x, y as logits (B, N, 2), or None."""
        return None

    def places(self, reference: Tensor | None, memory: Memory) -> Any:
        """Compute, once for all layers, the places of :meth:`initial_reference` and of keys."""
        return None

    def forward(
        self, memory: Memory, box_offsets: Callable[[Tensor, int], Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`~smca.modeling.parts.Decoder.forward`; the outputs are normed."""
        position = self.in_use(self.query_embed).expand(memory.tokens.shape[0], -1, -1)
        return self.decode(memory, position, self.groups_in_use)

    def decode(self, memory: Memory, position: Tensor, groups: int) -> tuple[Tensor, Tensor | None]:
        """Run the layers with queries of these embeddings, in so many groups."""
        target = torch.zeros_like(position)
        memory = memory.for_decoder()
        with full_precision(position.device):  # places need it
            reference = self.initial_reference(position)
        places = self.places(reference, memory)
        hidden = []
        for layer in self.layers:
            target = layer(target, position, memory, places, groups)
            hidden.append(target)
        outputs = self.norm(torch.stack(hidden if self.training else hidden[-1:]))
        if reference is not None:
            reference = by_group(reference, groups)
        return by_group(outputs, groups), reference


@SMCA_DECODER_REGISTRY.register()
class DETRDecoder(QueryDecoder):
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
        query_groups: int = 1,
        pre_norm: bool = False,
    ):
        """
        Args:
            num_layers: number of decoder layers.
            num_queries, dim, num_heads: N, C and H.
            ffn_dim: hidden width of the FFN.
            dropout: after attention, inside and after the FFN.
            attention_dropout: on attention weights.
            query_groups: G, the groups of ``num_queries`` each that it trains.
            pre_norm: see :class:`~smca.modeling.layers.ResidualBlock`.
        """
        heads: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "dropout": attention_dropout}
        layers = [
            DecoderLayer(
                self_attention=QuerySelfAttention(**heads),
                co_attention=CoAttention(**heads),
                ffn=FFN(dim, ffn_dim, dropout),
                dim=dim,
                dropout=dropout,
                pre_norm=pre_norm,
            )
            for _ in range(num_layers)
        ]
        super().__init__(num_queries=num_queries, dim=dim, layers=layers, query_groups=query_groups)
        self.pre_norm = pre_norm

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {**super().from_config(cfg), "pre_norm": cfg.MODEL.SMCA.PRE_NORM}
