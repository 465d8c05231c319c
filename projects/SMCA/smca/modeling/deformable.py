"""Deformable DETR's encoder and decoder (arXiv 2010.04159, sections 4 and A.4).

Shapes: B images, N queries, L tokens of all scales, C channels, S scales. ``map_sizes`` (B, S, 2)
is :attr:`~smca.modeling.memory.Memory.map_sizes`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import Size
from .decoder import DecoderLayer, DETRDecoder, QuerySelfAttention
from .deformable_attention import DeformableAttention
from .encoder import EncoderBlock
from .layers import FFN, full_precision, linear
from .memory import Memory
from .parts import Decoder, Encoder
from .registry import SMCA_DECODER_REGISTRY, SMCA_ENCODER_REGISTRY


def cell_middles(shapes: Sequence[Size], map_sizes: Tensor) -> Tensor:
    """The middles x, y (B, L, 2) of all cells as fractions of each image, beyond 1 in padding."""
    middles = []
    for (rows, columns), valid in zip(shapes, map_sizes.unbind(1), strict=True):
        y = torch.arange(rows, device=map_sizes.device) + 0.5
        x = torch.arange(columns, device=map_sizes.device) + 0.5
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (rows, columns, 2)
        middles.append(grid.flatten(0, 1) / valid[:, None])
    return torch.cat(middles, dim=1)


class DeformableSelfAttention(DeformableAttention):
    """Tokens read a few places of all scales around their own."""

    def forward(self, memory: Memory, middles: Tensor, map_sizes: Tensor) -> Tensor:
        """Attended tokens (B, L, C); ``middles`` (B, L, 2) are those of :func:`cell_middles`."""
        return super().forward(memory.keys(), memory, middles, map_sizes)


@SMCA_ENCODER_REGISTRY.register()
class DeformableEncoder(Encoder):
    """Blocks of deformable self-attention."""

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
            num_layers: number of blocks.
            num_scales, dim, num_heads, ffn_dim, dropout: see
                :class:`~smca.modeling.encoder.IntraMultiEncoder`.
            num_points: places that each head reads of each scale.
        """
        super().__init__()
        self.blocks = nn.ModuleList(
            EncoderBlock(
                mixer=DeformableSelfAttention(
                    dim=dim, num_heads=num_heads, num_scales=num_scales, num_points=num_points
                ),
                ffn=FFN(dim, ffn_dim, dropout),
                dim=dim,
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
        map_sizes = memory.map_sizes
        middles = cell_middles(memory.shapes, map_sizes)
        for block in self.blocks:
            memory = block(memory, middles, map_sizes)
        return memory


class DeformableCoAttention(DeformableAttention):
    """Queries read a few places of the image around their references."""

    def forward(
        self, target: Tensor, position: Tensor, memory: Memory, guide: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Attended content (B, N, C); the guide is references (B, N, 2 or 4) and map_sizes."""
        return super().forward(target + position, memory, *guide)


@SMCA_DECODER_REGISTRY.register()
class DeformableDecoder(Decoder):
    """Learned queries that read a few places around a point, or around the box found so far.

    Attributes:
        refines: each layer corrects the boxes of the one before (iterative bounding box
            refinement); :meth:`forward` then needs the box heads.
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
            num_layers, num_queries, dim, num_heads, ffn_dim, dropout, attention_dropout: see
                :class:`~smca.modeling.decoder.DETRDecoder`; the last is for self-attention.
            num_scales: S.
            num_points: places that each head reads of each scale.
            refine: see ``refines``.
        """
        super().__init__()
        self.refines = refine
        num_sets = num_layers if refine else 1
        self.head_options = {"zero_boxes": True, "size_bias": -2.0, "num_sets": num_sets}
        self.query_embed = nn.Embedding(num_queries, 2 * dim)  # positions, then targets
        self.sampling_reference = linear(dim, 2)
        self.layers = nn.ModuleList(
            DecoderLayer(
                self_attention=QuerySelfAttention(
                    dim=dim, num_heads=num_heads, dropout=attention_dropout
                ),
                co_attention=DeformableCoAttention(
                    dim=dim, num_heads=num_heads, num_scales=num_scales, num_points=num_points
                ),
                ffn=FFN(dim, ffn_dim, dropout),
                dim=dim,
                dropout=dropout,
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
        """See :meth:`~smca.modeling.parts.Decoder.forward`.

        Returns:
            without refinement points x, y (B, N, 2) that all layers start from; with it boxes
            (layers, B, N, 4), the first layer's points filled up with zeros.
        """
        embeddings = self.query_embed.weight.expand(memory.tokens.shape[0], -1, -1)
        position, target = embeddings.chunk(2, -1)
        with full_precision(position.device):  # places need it
            reference = self.sampling_reference(position)
        map_sizes = memory.map_sizes
        hidden: list[Tensor] = []
        references: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            if self.refines and number > 0:
                assert box_offsets is not None
                # Gradients stay within a layer: the next one starts from a given box.
                reference = (references[-1] + box_offsets(target, number - 1)).detach()
            target = layer(target, position, memory, (reference.sigmoid(), map_sizes))
            references.append(F.pad(reference, (0, 4 - reference.shape[-1])))
            hidden.append(target)
        if not self.training:
            hidden, references = hidden[-1:], references[-1:]
        return torch.stack(hidden), torch.stack(references) if self.refines else reference
