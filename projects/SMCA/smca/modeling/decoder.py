"""Decoder with spatially modulated co-attention (Eqs. 3-9).

Shapes: B images, N queries, L keys, C channels, H heads, S scales.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Attention, LogitBias, attention_weights, padding_bias
from .layers import FFN, apply_per_scale
from .memory import Memory
from .registry import SMCA_DECODER_REGISTRY
from .spatial_prior import Prior, SpatialPrior, center_mlp


class CoAttention(Attention):
    """Queries attend to each scale by itself, modulated by a prior; the scales are then summed."""

    def project(self, query: Tensor, memory: Memory) -> tuple[Tensor, ...]:
        """Queries (B, H, N, d), and keys and values (B, H, L, d)."""
        placed = memory.tokens + memory.positions
        return (
            self.split_heads(self.q_proj(query)),
            self.split_heads(apply_per_scale(self.k_proj, placed, memory.lengths)),
            self.split_heads(apply_per_scale(self.v_proj, memory.tokens, memory.lengths)),
        )

    def forward(self, query: Tensor, memory: Memory, prior: Prior) -> Tensor:
        """
        Args:
            query: (B, N, C), positions added.
            memory: the encoded image.
            prior: log G of each scale and how much each scale counts.

        Returns:
            (B, N, C).
        """
        query, key, value = self.project(query, memory)
        scales = zip(
            key.split(memory.lengths, dim=2),
            value.split(memory.lengths, dim=2),
            _biases(memory, prior),
            strict=True,
        )
        out = 0
        for scale, (key, value, biases) in enumerate(scales):
            attended = self.attend(query, key, value, biases)
            if prior.selection is not None:
                attended = attended * prior.selection[:, None, :, scale, None].to(attended.dtype)
            out = out + attended
        return self.out_proj(self.merge_heads(out))

    def weights(self, query: Tensor, memory: Memory, prior: Prior) -> list[Tensor]:
        """The attention weights of each scale, (B, H, N, L_s), for pictures."""
        query, key, _ = self.project(query, memory)
        return [
            attention_weights(query, key, biases=biases)
            for key, biases in zip(
                key.split(memory.lengths, dim=2), _biases(memory, prior), strict=True
            )
        ]


def _biases(memory: Memory, prior: Prior) -> list[list[LogitBias]]:
    """What is added to the logits of each scale."""
    return [
        [bias] if padding is None else [bias, padding_bias(padding)]
        for bias, padding in zip(prior.biases, memory.padding_by_scale(), strict=True)
    ]


class DecoderLayer(nn.Module):
    """Post-norm layer: self-attention among queries, modulated co-attention, FFN."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        attention_dropout: float,
        key_sets: int,
        prior: SpatialPrior,
    ):
        super().__init__()
        self.prior = prior
        self.self_attention = Attention(dim=dim, num_heads=num_heads, dropout=attention_dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.co_attention = CoAttention(
            dim=dim, num_heads=num_heads, dropout=attention_dropout, key_sets=key_sets
        )
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FFN(dim, ffn_dim, dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, query_embed: Tensor, memory: Memory, prior: Prior) -> Tensor:
        placed = target + query_embed
        attended = self.self_attention(placed, placed, target)
        target = self.norm1(target + self.dropout(attended))
        attended = self.co_attention(target + query_embed, memory, prior)
        target = self.norm2(target + self.dropout(attended))
        return self.norm3(target + self.dropout(self.ffn(target)))


@SMCA_DECODER_REGISTRY.register()
class SMCADecoder(nn.Module):
    """Learned queries that look around a centre they predict."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_queries: int,
        num_scales: int,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        share_key_value: bool = True,
        per_head: bool = True,
        scale_kind: str = "independent",
        beta: float = 8.0,
        center_layers: int = 3,
        scale_selection: bool = True,
    ):
        """
        Args:
            num_layers: decoder layers.
            num_queries: N.
            num_scales: S.
            dim: C.
            num_heads: H.
            ffn_dim: hidden width of the FFN.
            dropout: after attention, inside and after the FFN.
            attention_dropout: on attention weights.
            share_key_value: one key and value projection for all scales, or one a scale.
            per_head, scale_kind, beta, scale_selection: see :class:`SpatialPrior`.
            center_layers: linear layers of the MLP that predicts the centre.
        """
        super().__init__()
        self.query_embed = nn.Embedding(num_queries, dim)
        self.center = center_mlp(dim, center_layers)
        self.layers = nn.ModuleList(
            DecoderLayer(
                dim=dim,
                num_heads=num_heads,
                ffn_dim=ffn_dim,
                dropout=dropout,
                attention_dropout=attention_dropout,
                key_sets=1 if share_key_value else num_scales,
                prior=SpatialPrior(
                    dim=dim,
                    num_heads=num_heads,
                    num_scales=num_scales,
                    per_head=per_head,
                    kind=scale_kind,
                    beta=beta,
                    scale_selection=scale_selection,
                    centers=number == 0,
                ),
            )
            for number in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            "num_layers": smca.DECODER.NUM_LAYERS,
            "num_queries": smca.NUM_QUERIES,
            "num_scales": smca.NUM_SCALES,
            "dim": smca.HIDDEN_DIM,
            "num_heads": smca.NHEADS,
            "ffn_dim": smca.DIM_FEEDFORWARD,
            "dropout": smca.DROPOUT,
            "attention_dropout": smca.ATTENTION_DROPOUT,
            "share_key_value": smca.DECODER.SHARE_KEY_VALUE,
            "per_head": smca.MODULATION.HEADS == "multi",
            "scale_kind": smca.MODULATION.SCALE,
            "beta": smca.MODULATION.BETA,
            "center_layers": smca.MODULATION.CENTER_LAYERS,
            "scale_selection": smca.DECODER.SCALE_SELECTION,
        }

    def forward(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """
        Returns:
            the normed outputs of the layers (layers, B, N, C), in evaluation of the last one only,
            and the initial centres (B, N, 2) as logits, x before y.
        """
        batch = len(memory.tokens)
        query_embed = self.query_embed.weight.expand(batch, -1, -1)
        target = torch.zeros_like(query_embed)
        reference = None
        hidden = []
        for layer in self.layers:
            # Positions of Gaussians need float32 whatever the rest of the model runs in.
            with torch.autocast(target.device.type, enabled=False):
                observed = layer.prior.norm(target.float() + query_embed)
                if reference is None:
                    reference = self.center(observed)
                prior = layer.prior(observed, reference, memory)
            target = layer(target, query_embed, memory, prior)
            hidden.append(target)
        outputs = hidden if self.training else hidden[-1:]
        return self.norm(torch.stack(outputs)), reference
