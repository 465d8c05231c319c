"""SMCA's decoder with boxes as queries: the Gaussian follows the box (docs/BEYOND.md).

Shapes: B images, N queries, C channels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .decoder import by_group
from .layers import MLP, full_precision, linear
from .memory import Memory
from .parts import Decoder
from .position_encoding import sine_embedding
from .registry import SMCA_DECODER_REGISTRY
from .smca_decoder import SMCADecoder, modulated_layers
from .spatial_prior import Places

# Centres start at random between these fractions of the image, boxes with half of its sides.
_CENTERS = (0.02, 0.98)


@SMCA_DECODER_REGISTRY.register()
class AnchoredSMCADecoder(Decoder):
    """Queries that are boxes, which each layer looks around and corrects.

    A query is learned as a box (DAB-DETR, arXiv 2201.12329). In each layer its sine embedding is
    the query's position, its centre is that of the Gaussians, and the layer's output corrects it.
    """

    has_attention_maps = True
    head_options = {"zero_boxes": True}

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
        scale_selection: bool = True,
        query_groups: int = 1,
    ):
        """See :class:`~smca.modeling.smca_decoder.SMCADecoder`; here boxes give the centres."""
        super().__init__()
        self.query_groups = query_groups
        self.oriented = scale_kind == "oriented"
        self.anchors = nn.Embedding(query_groups * num_queries, 4)  # cxcywh as logits
        with torch.no_grad():
            nn.init.zeros_(self.anchors.weight)
            self.anchors.weight[:, :2] = nn.init.uniform_(
                self.anchors.weight[:, :2].clone(), *_CENTERS
            ).logit()
        self.position = MLP(2 * dim, dim, dim, 2, make=linear)
        self.layers = nn.ModuleList(
            modulated_layers(
                num_layers=num_layers,
                num_scales=num_scales,
                dim=dim,
                num_heads=num_heads,
                ffn_dim=ffn_dim,
                dropout=dropout,
                attention_dropout=attention_dropout,
                share_key_value=share_key_value,
                per_head=per_head,
                scale_kind=scale_kind,
                beta=beta,
                scale_selection=scale_selection,
                predicts_centers=False,
            )
        )
        self.norm = nn.LayerNorm(dim)

    @classmethod
    def from_config(cls, cfg) -> dict:
        options = SMCADecoder.from_config(cfg)
        del options["center_layers"]
        return options

    def forward(
        self, memory: Memory, box_offsets: Callable[[Tensor, int], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`~smca.modeling.parts.Decoder.forward`; the outputs are normed."""
        assert box_offsets is not None
        reference = self.in_use(self.anchors).expand(memory.tokens.shape[0], -1, -1)
        memory = memory.for_decoder()
        places = Places.of(reference[..., :2], memory, oriented=self.oriented)
        target = reference.new_zeros(*reference.shape[:2], self.norm.weight.shape[0])
        outputs: list[Tensor] = []
        references: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            if number > 0:
                # Gradients stay within a layer: the next one starts from a given box.
                reference = (reference + box_offsets(outputs[-1], number - 1)).detach()
                places = places.starting_at(reference[..., :2], memory)
            target = layer(target, self.embed(reference), memory, places, self.groups_in_use)
            outputs.append(self.norm(target))
            references.append(reference)
        if not self.training:
            outputs, references = outputs[-1:], references[-1:]
        hidden, starts = torch.stack(outputs), torch.stack(references)
        return by_group(hidden, self.groups_in_use), by_group(starts, self.groups_in_use)

    def embed(self, reference: Tensor) -> Tensor:
        """Return the positions (B, N, C) of queries that are boxes, cxcywh as logits (B, N, 4)."""
        with full_precision(reference.device):  # half precisions would blur places
            x, y, w, h = (reference.sigmoid() * (2 * math.pi)).unbind(-1)
            angles = torch.stack((y, x, w, h), dim=-1)
            channels = self.norm.weight.shape[0] // 2
            return self.position(sine_embedding(angles, channels).flatten(-2))
