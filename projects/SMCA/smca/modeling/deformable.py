"""Deformable DETR's encoder and decoder (arXiv 2010.04159, sections 4 and A.4).

Shapes: B images, N queries, L tokens of all scales, C channels, S scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import Size
from .decoder import DecoderLayer, DETRDecoder, QuerySelfAttention
from .deformable_attention import DeformableAttention, valid_extent
from .layers import FFN, full_precision, linear
from .memory import Memory
from .registry import SMCA_DECODER_REGISTRY, SMCA_ENCODER_REGISTRY


def cell_middles(shapes: Sequence[Size], extent: Tensor) -> Tensor:
    """The middles x, y of all cells as fractions of each image; beyond 1 where padding is.

    Args:
        shapes: (rows, columns) of each scale's map.
        extent: (B, S, 2) valid columns and rows.

    Returns:
        (B, L, 2).
    """
    middles = []
    for (rows, columns), valid in zip(shapes, extent.unbind(1), strict=True):
        y = torch.arange(rows, device=extent.device) + 0.5
        x = torch.arange(columns, device=extent.device) + 0.5
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (rows, columns, 2)
        middles.append(grid.flatten(0, 1) / valid[:, None])
    return torch.cat(middles, dim=1)


class DeformableEncoderBlock(nn.Module):
    """Post-norm block: deformable self-attention over all scales and FFN."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_scales: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
    ):
        super().__init__()
        self.attention = DeformableAttention(
            dim=dim, num_heads=num_heads, num_scales=num_scales, num_points=num_points
        )
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FFN(dim, ffn_dim, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, memory: Memory, middles: Tensor, extent: Tensor) -> Memory:
        placed = memory.tokens + memory.positions
        attended = self.attention(placed, memory, middles, extent)
        tokens = self.norm1(memory.tokens + self.dropout(attended))
        return memory.with_tokens(self.norm2(tokens + self.dropout(self.ffn(tokens))))


@SMCA_ENCODER_REGISTRY.register()
class DeformableEncoder(nn.Module):
    """Every token reads a few places of all scales around its own place."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_scales: int,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        num_points: int = 4,
        dropout: float = 0.1,
    ):
        """
        Args:
            num_layers: blocks.
            num_scales: S.
            dim: C.
            num_heads: H.
            ffn_dim: hidden width of the FFN.
            num_points: places that each head reads of each scale.
            dropout: after attention, inside and after the FFN.
        """
        super().__init__()
        self.blocks = nn.ModuleList(
            DeformableEncoderBlock(
                dim=dim,
                num_heads=num_heads,
                num_scales=num_scales,
                num_points=num_points,
                ffn_dim=ffn_dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            "num_layers": smca.ENCODER.NUM_LAYERS,
            "num_scales": smca.NUM_SCALES,
            "dim": smca.HIDDEN_DIM,
            "num_heads": smca.NHEADS,
            "ffn_dim": smca.DIM_FEEDFORWARD,
            "num_points": smca.DEFORMABLE.NUM_POINTS,
            "dropout": smca.DROPOUT,
        }

    def forward(self, memory: Memory) -> Memory:
        extent = valid_extent(memory)
        middles = cell_middles(memory.shapes, extent)
        for block in self.blocks:
            memory = block(memory, middles, extent)
        return memory


class DeformableCoAttention(DeformableAttention):
    """Queries read a few places of the image around their references."""

    def forward(
        self, target: Tensor, position: Tensor, memory: Memory, prior: tuple[Tensor, Tensor]
    ) -> Tensor:
        """
        Args:
            target, position: (B, N, C), content and query embedding.
            memory: the encoded image.
            prior: reference (B, N, 2 or 4) and extent (B, S, 2), see :class:`DeformableAttention`.

        Returns:
            (B, N, C).
        """
        return super().forward(target + position, memory, *prior)


@SMCA_DECODER_REGISTRY.register()
class DeformableDecoder(nn.Module):
    """Learned queries that read a few places around a point, or around the box found so far.

    Attributes:
        refines: whether each layer corrects the boxes of the one before (iterative bounding box
            refinement); :meth:`forward` then needs the box heads.
        head_options: arguments the detection heads need beside their sizes.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_queries: int,
        num_scales: int,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        num_points: int = 4,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        refine: bool = False,
    ):
        """
        Args:
            num_layers: decoder layers.
            num_queries: N.
            num_scales: S.
            dim: C.
            num_heads: H.
            ffn_dim: hidden width of the FFN.
            num_points: places that each head reads of each scale.
            dropout: after attention, inside and after the FFN.
            attention_dropout: on the weights of self-attention.
            refine: see ``refines``.
        """
        super().__init__()
        self.refines = refine
        self.head_options = {"zero_boxes": True, "size_bias": -2.0}
        if refine:
            self.head_options["num_sets"] = num_layers
        self.query_embed = nn.Embedding(num_queries, 2 * dim)  # positions, then targets
        self.sampling_reference = linear(dim, 2)
        self.layers = nn.ModuleList(
            DecoderLayer(
                dim=dim,
                ffn_dim=ffn_dim,
                dropout=dropout,
                self_attention=QuerySelfAttention(
                    dim=dim, num_heads=num_heads, dropout=attention_dropout
                ),
                co_attention=DeformableCoAttention(
                    dim=dim, num_heads=num_heads, num_scales=num_scales, num_points=num_points
                ),
            )
            for _ in range(num_layers)
        )

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        if smca.DEFORMABLE.REFINE and not smca.LOSS.AUXILIARY:
            raise ConfigError(
                "MODEL.SMCA.LOSS.AUXILIARY is False; it must be True with "
                "MODEL.SMCA.DEFORMABLE.REFINE, where each layer has heads of its own to train"
            )
        return {
            **DETRDecoder.from_config(cfg),
            "num_scales": smca.NUM_SCALES,
            "num_points": smca.DEFORMABLE.NUM_POINTS,
            "refine": smca.DEFORMABLE.REFINE,
        }

    def forward(
        self, memory: Memory, box_offsets: Callable[[Tensor, int], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            memory: the encoded image.
            box_offsets: needed when the decoder refines: the box head of a layer, from its output
                (B, N, C) and number to logits (B, N, 4) that are added to its reference.

        Returns:
            the outputs of the layers (layers, B, N, C), in evaluation of the last one only, and
            their references as logits: (B, N, 2) points of all layers; with refinement
            (layers, B, N, 4) boxes of each, the first one's points filled up with zeros.
        """
        embeddings = self.query_embed.weight.expand(memory.tokens.shape[0], -1, -1)
        position, target = embeddings.chunk(2, -1)
        with full_precision(position.device):  # places need it
            reference = self.sampling_reference(position)
        extent = valid_extent(memory)
        hidden: list[Tensor] = []
        references: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            if self.refines and number > 0:
                assert box_offsets is not None
                # Gradients stay within a layer: the next one starts from a given box.
                reference = (references[-1] + box_offsets(target, number - 1)).detach()
            target = layer(target, position, memory, (reference.sigmoid(), extent))
            references.append(F.pad(reference, (0, 4 - reference.shape[-1])))
            hidden.append(target)
        if not self.training:
            hidden, references = hidden[-1:], references[-1:]
        return torch.stack(hidden), torch.stack(references) if self.refines else reference
