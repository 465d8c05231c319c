"""The encoder's block, and the paper's encoder of intra-scale and multi-scale self-attention.

Shapes: B images, L tokens of all scales, C channels, S scales.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention, padding_biases
from .layers import FFN, ResidualBlock, apply_per_scale, compute_dtype, per_scale
from .memory import Memory
from .parts import Encoder
from .registry import SMCA_ENCODER_REGISTRY


class EncoderBlock(ResidualBlock):
    """Mixes tokens, then runs an FFN on each."""

    def __init__(
        self,
        *,
        mixer: nn.Module,
        ffn: nn.Module,
        dim: int,
        dropout: float,
        mixer_name: str = "attention",
        pre_norm: bool = False,
    ):
        """
        Args:
            mixer: maps a memory, and the places of :meth:`forward`, to tokens (B, L, C).
            ffn: one for all scales or one a scale, see :func:`~smca.modeling.layers.per_scale`.
            mixer_name: the mixer's attribute, by which checkpoints name its parameters.
            dropout, pre_norm: see :class:`ResidualBlock`.
        """
        super().__init__(dropout=dropout, pre_norm=pre_norm)
        self.mixer_name = mixer_name
        self.add_module(mixer_name, mixer)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = ffn
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, memory: Memory, *places: Tensor) -> Memory:
        """Return the memory with new tokens; ``places`` are further arguments of the mixer."""
        mixer = getattr(self, self.mixer_name)

        def mix(tokens: Tensor) -> Tensor:
            return mixer(memory.with_tokens(tokens), *places)

        def feed_forward(tokens: Tensor) -> Tensor:
            return apply_per_scale(self.ffn, tokens, memory.lengths)

        tokens = self.residual(memory.tokens, mix, self.norm1)
        return memory.with_tokens(self.residual(tokens, feed_forward, self.norm2))


class ScaleSelfAttention(Attention):
    """Self-attention inside each scale ("intra") or over the tokens of all scales ("multi")."""

    def __init__(self, *, kind: str, **options):
        super().__init__(**options)
        self.kind = kind

    def forward(self, memory: Memory) -> Tensor:
        """Attended tokens (B, L, C)."""
        lengths = memory.lengths
        keys = memory.keys()
        with_pos = keys.to(compute_dtype(keys))  # once for queries and keys
        query, key, value = (
            self.split_heads(apply_per_scale(projection, tokens, lengths))
            for projection, tokens in (
                (self.q_proj, with_pos),
                (self.k_proj, with_pos),
                (self.v_proj, memory.tokens),
            )
        )
        if self.kind == "multi":
            out = self.attend(query, key, value, padding_biases(memory.padding))
        else:
            parts = (x.split(lengths, dim=2) for x in (query, key, value))
            biases = map(padding_biases, memory.padding_by_scale())
            scales = zip(*parts, biases, strict=True)
            out = torch.cat([self.attend(*scale) for scale in scales], dim=2)
        return apply_per_scale(self.out_proj, self.merge_heads(out), lengths)


@SMCA_ENCODER_REGISTRY.register()
class IntraMultiEncoder(Encoder):
    """Blocks of intra-scale and multi-scale attention in any order (section 3.3, Table 3).

    With one scale it is DETR's encoder.
    """

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
        pre_norm: bool = False,
    ):
        """
        Args:
            blocks: the kind of each block, "intra" or "multi".
            num_scales, dim, num_heads: S, C and H.
            ffn_dim: hidden width of the FFN.
            dropout: after attention, inside and after the FFN.
            attention_dropout: on attention weights.
            share_attention, share_ffn: all scales share one set of weights, also in multi blocks;
                else each scale has its own.
            recompute: "none", "multi" or "all": training keeps no activations of these blocks,
                but computes them again in the backward pass.
            pre_norm: see :class:`ResidualBlock`; with it a norm follows the last block.
        """
        super().__init__()
        self.pre_norm = pre_norm
        attention_sets = 1 if share_attention else num_scales
        self.recomputed = [recompute in ("all", kind) for kind in blocks]
        self.blocks = nn.ModuleList(
            EncoderBlock(
                mixer=ScaleSelfAttention(
                    kind=kind,
                    dim=dim,
                    num_heads=num_heads,
                    dropout=attention_dropout,
                    query_sets=attention_sets,
                    key_sets=attention_sets,
                ),
                ffn=per_scale(lambda: FFN(dim, ffn_dim, dropout), 1 if share_ffn else num_scales),
                dim=dim,
                dropout=dropout,
                pre_norm=pre_norm,
            )
            for kind in blocks
        )
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

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
            "pre_norm": smca.PRE_NORM,
        }

    def forward(self, memory: Memory) -> Memory:
        for block, recomputed in zip(self.blocks, self.recomputed, strict=True):
            memory = _recomputed(block, memory) if recomputed and self.training else block(memory)
        return memory.with_tokens(self.norm(memory.tokens))


def _recomputed(block: nn.Module, memory: Memory) -> Memory:
    """Return ``block(memory)``; the backward pass computes its activations again."""

    def tokens_of(tokens: Tensor) -> Tensor:
        return block(memory.with_tokens(tokens)).tokens

    # checkpoint keeps the random state, and so the dropout masks, only of the devices of tensors
    # among its arguments: it gets the tokens, not their memory.
    return memory.with_tokens(checkpoint(tokens_of, memory.tokens, use_reentrant=False))
