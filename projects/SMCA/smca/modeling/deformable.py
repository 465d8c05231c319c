"""Deformable DETR's attention, encoder and decoder in plain PyTorch (arXiv 2010.04159).

Shapes: B images, N queries, L tokens of all scales, C channels, H heads, S scales, K points.
``map_sizes`` (B, S, 2) is :attr:`~smca.modeling.memory.Memory.map_sizes`.

Each query of each head reads K places of each scale bilinearly and sums them with weights that it
predicts (Eq. 3). Places are counted in cells of a map: the middle of the first cell is (0.5, 0.5),
x before y.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import Size
from .decoder import DecoderLayer, QueryDecoder, QuerySelfAttention, by_group
from .encoder import EncoderBlock
from .layers import FFN, full_precision, linear
from .memory import Memory
from .parts import Decoder, Encoder
from .registry import SMCA_DECODER_REGISTRY, SMCA_ENCODER_REGISTRY


def sampling_points(reference: Tensor, offsets: Tensor, map_sizes: Tensor) -> Tensor:
    """Find where queries look, in cells: (B, N, H, S, K, 2).

    Around a point, offsets are in cells of each scale. Around a box, an offset of K reaches from
    its middle to its side.

    Args:
        reference: (B, N, 2) points x, y or (B, N, 4) boxes cxcywh, as fractions of each image.
        offsets: (B, N, H, S, K, 2).
        map_sizes: (B, S, 2).
    """
    reference = reference[:, :, None, None, None]
    map_sizes = map_sizes[:, None, None, :, None]
    middle, size = reference[..., :2], reference[..., 2:]
    if reference.shape[-1] == 4:
        offsets = offsets * size * (0.5 / offsets.shape[-2]) * map_sizes
    return middle * map_sizes + offsets


def sample(value: Tensor, shapes: Sequence[Size], points: Tensor, weights: Tensor) -> Tensor:
    """Sum values at points by weights: (B, N, C). Outside the maps values are zero.

    Args:
        value: (B, L, C), the channels of the heads side by side.
        shapes: (rows, columns) of each scale's map.
        points: (B, N, H, S, K, 2), in cells.
        weights: (B, N, H, S, K).
    """
    batch, _, heads = points.shape[:3]
    maps = value.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)  # (B*H, d, L)
    x, y = points.transpose(1, 2).flatten(0, 1).unbind(-1)  # (B*H, N, S, K) each
    weights = weights.transpose(1, 2).flatten(0, 1)
    scales = maps.split([rows * columns for rows, columns in shapes], dim=-1)
    out = maps.new_zeros(())
    for s, (scale, (rows, columns)) in enumerate(zip(scales, shapes, strict=True)):
        # Python numbers, because a tensor of sizes would have to be sent to the device.
        grid = torch.stack((x[:, :, s] * (2 / columns) - 1, y[:, :, s] * (2 / rows) - 1), dim=-1)
        scale = scale.unflatten(-1, (rows, columns))
        sampled = F.grid_sample(scale, grid, padding_mode="zeros", align_corners=False)
        out = out + (sampled * weights[:, None, :, s]).sum(dim=-1)  # (B*H, d, N)
    return out.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Queries choose a few places of each scale around a reference, and how much each counts.

    Time and memory grow with N * S * K, not with N * L.
    """

    def __init__(self, *, dim: int, num_heads: int, num_scales: int, num_points: int = 4):
        super().__init__()
        self.layout = (num_heads, num_scales, num_points)
        places = math.prod(self.layout)
        self.sampling_offsets = nn.Linear(dim, places * 2)
        self.attention_weights = nn.Linear(dim, places)
        self.value_proj = linear(dim, dim)
        self.output_proj = linear(dim, dim)
        for parameter in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(parameter)
        # Each head starts in its own direction, each point one step further, all alike.
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, num_points + 1)[:, None]
        star = (directions[:, None, None] * steps).expand(*self.layout, 2)
        self.sampling_offsets.bias.data.copy_(star.flatten())

    def forward(
        self, query: Tensor, memory: Memory, reference: Tensor, map_sizes: Tensor
    ) -> Tensor:
        """Read the memory for queries (B, N, C), positions added: (B, N, C).

        ``reference`` has points or boxes as :func:`sampling_points` takes them.
        """
        value = self.value_proj(memory.tokens)
        if memory.padding is not None:
            value = value.masked_fill(memory.padding[..., None], 0.0)
        # Places need float32 whatever the rest of the model runs in.
        with full_precision(query.device):
            query = query.to(self.sampling_offsets.weight.dtype)
            offsets = self.sampling_offsets(query).unflatten(-1, (*self.layout, 2))
            logits = self.attention_weights(query).unflatten(-1, self.layout)
            weights = logits.flatten(-2).softmax(dim=-1).view_as(logits)  # over S * K
            points = sampling_points(reference, offsets, map_sizes)
            out = sample(value.to(points.dtype), memory.shapes, points, weights)
        return self.output_proj(out.to(value.dtype))


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

    embeds_one_scale = True  # as in the authors' program

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
        query_groups: int = 1,
    ):
        """
        Args:
            num_layers, num_queries, dim, num_heads, ffn_dim, dropout, attention_dropout (of
                self-attention), query_groups: see :class:`~smca.modeling.decoder.DETRDecoder`.
            num_scales: S.
            num_points: places that each head reads of each scale.
            refine: see ``refines``.
        """
        super().__init__()
        self.refines = refine
        self.query_groups = query_groups
        num_sets = num_layers if refine else 1
        self.head_options = {"zero_boxes": True, "size_bias": -2.0, "num_sets": num_sets}
        self.query_embed = nn.Embedding(query_groups * num_queries, 2 * dim)  # position, target
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
            **QueryDecoder.from_config(cfg),
            "num_scales": smca.NUM_SCALES,
            "num_points": smca.DEFORMABLE.NUM_POINTS,
            "refine": smca.DEFORMABLE.REFINE,
        }

    def forward(
        self, memory: Memory, box_offsets: Callable[[Tensor, int], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`~smca.modeling.parts.Decoder.forward`.

        With refinement layers start from boxes, the first from points filled up with zeros.
        """
        embeddings = self.in_use(self.query_embed).expand(memory.tokens.shape[0], -1, -1)
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
            guide = (reference.sigmoid(), map_sizes)
            target = layer(target, position, memory, guide, self.groups_in_use)
            references.append(F.pad(reference, (0, 4 - reference.shape[-1])))
            hidden.append(target)
        if not self.training:
            hidden, references = hidden[-1:], references[-1:]
        starts = torch.stack(references) if self.refines else reference
        outputs = torch.stack(hidden)
        return by_group(outputs, self.groups_in_use), by_group(starts, self.groups_in_use)
