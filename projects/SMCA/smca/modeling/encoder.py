"""Encoder of intra-scale and multi-scale self-attention blocks (section 3.3, Table 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention, padding_biases
from .layers import FFN, apply_per_scale, compute_dtype, per_scale
from .memory import Memory
from .registry import SMCA_ENCODER_REGISTRY


class ScaleSelfAttention(Attention):
    """Self-attention inside each scale ("intra") or over the tokens of all ("multi")."""

    def __init__(self, *, kind: str, **options):
        super().__init__(**options)
        self.kind = kind

    def forward(self, memory: Memory) -> Tensor:
        """Attended tokens (B, L, C)."""
        lengths = memory.lengths
        keys = memory.keys()
        placed = keys.to(compute_dtype(keys))  # once for both
        query, key, value = (
            self.split_heads(apply_per_scale(projection, tokens, lengths))
            for projection, tokens in (
                (self.q_proj, placed),
                (self.k_proj, placed),
                (self.v_proj, memory.tokens),
            )
        )
        if self.kind == "multi":
            out = self.attend(query, key, value, padding_biases(memory.padding))
        else:
            scales = zip(
                query.split(lengths, dim=2),
                key.split(lengths, dim=2),
                value.split(lengths, dim=2),
                map(padding_biases, memory.padding_by_scale()),
                strict=True,
            )
            out = torch.cat([self.attend(*scale) for scale in scales], dim=2)
        return apply_per_scale(self.out_proj, self.merge_heads(out), lengths)


class EncoderBlock(nn.Module):
    """Post-norm block: self-attention and FFN, each with dropout, residual and norm."""

    def __init__(
        self,
        *,
        kind: str,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        attention_dropout: float,
        attention_sets: int,
        ffn_sets: int,
    ):
        super().__init__()
        self.attention = ScaleSelfAttention(
            kind=kind,
            dim=dim,
            num_heads=num_heads,
            dropout=attention_dropout,
            query_sets=attention_sets,
            key_sets=attention_sets,
        )
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = per_scale(lambda: FFN(dim, ffn_dim, dropout), ffn_sets)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, memory: Memory) -> Memory:
        tokens = self.norm1(memory.tokens + self.dropout(self.attention(memory)))
        out = apply_per_scale(self.ffn, tokens, memory.lengths)
        return memory.with_tokens(self.norm2(tokens + self.dropout(out)))


@SMCA_ENCODER_REGISTRY.register()
class IntraMultiEncoder(nn.Module):
    """Blocks of intra-scale and multi-scale attention in any order; one scale alone is DETR's."""

    def __init__(
        self,
        *,
        blocks: Sequence[str],
        num_scales: int,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        share_attention: bool = True,
        share_ffn: bool = True,
        recompute: str = "none",
    ):
        """
        Args:
            blocks: "intra" or "multi", one entry a block.
            num_scales: S.
            dim: C.
            num_heads: H.
            ffn_dim: hidden width of the FFN.
            dropout: after attention, inside and after the FFN.
            attention_dropout: on attention weights.
            share_attention, share_ffn: one set of weights for all scales, or (multi blocks too)
                one a scale.
            recompute: "none", "multi" or "all": blocks of which training keeps no activations,
                but computes them again in the backward pass.
        """
        super().__init__()
        self.recomputed = [recompute in ("all", kind) for kind in blocks]
        self.blocks = nn.ModuleList(
            EncoderBlock(
                kind=kind,
                dim=dim,
                num_heads=num_heads,
                ffn_dim=ffn_dim,
                dropout=dropout,
                attention_dropout=attention_dropout,
                attention_sets=1 if share_attention else num_scales,
                ffn_sets=1 if share_ffn else num_scales,
            )
            for kind in blocks
        )

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            "blocks": smca.ENCODER.BLOCKS,
            "num_scales": smca.NUM_SCALES,
            "dim": smca.HIDDEN_DIM,
            "num_heads": smca.NHEADS,
            "ffn_dim": smca.DIM_FEEDFORWARD,
            "dropout": smca.DROPOUT,
            "attention_dropout": smca.ATTENTION_DROPOUT,
            "share_attention": smca.ENCODER.SHARE_ATTENTION,
            "share_ffn": smca.ENCODER.SHARE_FFN,
            "recompute": smca.ENCODER.RECOMPUTE,
        }

    def forward(self, memory: Memory) -> Memory:
        for block, recomputed in zip(self.blocks, self.recomputed, strict=True):
            run = _recomputed if recomputed and self.training else EncoderBlock.__call__
            memory = run(block, memory)
        return memory


def _recomputed(block: nn.Module, memory: Memory) -> Memory:
    """``block(memory)``, whose activations are computed again in the backward pass."""

    def tokens_of(tokens: Tensor) -> Tensor:
        return block(memory.with_tokens(tokens)).tokens

    # Tokens, not their memory: torch keeps the random state, and so the dropout masks, of the
    # devices of the tensors that it is given.
    return memory.with_tokens(checkpoint(tokens_of, memory.tokens, use_reentrant=False))
