"""SMCA's decoder with boxes as queries: the Gaussian follows the box (docs/BEYOND.md).

Shapes: B images, N queries, C channels.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..structures import NoisedQueries, Predictions, Targets
from .decoder import by_group
from .denoising import Denoising
from .heads import DetectionHeads
from .layers import MLP, full_precision, linear
from .memory import Memory
from .parts import Decoder
from .position_encoding import sine_embedding
from .proposals import Proposals
from .registry import SMCA_DECODER_REGISTRY
from .smca_decoder import SMCADecoder, modulated_layers
from .spatial_prior import Places

# Centres start at random between these fractions of the image, boxes with half of its sides.
_CENTERS = (0.02, 0.98)


class Decoded(NamedTuple):
    """What the layers put out, in evaluation the last one.

    Attributes:
        hidden, reference: as :meth:`~smca.modeling.parts.Decoder.forward` returns them.
        alone: like ``hidden``, before queries see each other; None where it teaches nothing.
        noised: ``hidden`` and ``reference`` of noised queries, (layers, B, Q, ...).
    """

    hidden: Tensor
    reference: Tensor
    alone: Tensor | None
    noised: tuple[Tensor, Tensor]


@SMCA_DECODER_REGISTRY.register()
class AnchoredSMCADecoder(Decoder):
    """Queries that are boxes, which each layer looks around and corrects.

    A query is learned as a box (DAB-DETR, arXiv 2201.12329), or starts from a proposal. In each
    layer its sine embedding is the query's position, its centre is that of the Gaussians, and the
    layer's output corrects it.
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
        denoising: Denoising | None = None,
        proposals: Proposals | None = None,
        one_to_many: DetectionHeads | None = None,
    ):
        """
        Args:
            denoising: makes further queries in training.
            proposals: finds ``num_queries`` boxes in the image, where the queries of each group
                start. What they look for is learned then, in place of the boxes.
            one_to_many: heads that read each layer's queries before they see each other. Layers
                look at the image first then, and have a second FFN.

        For the others see :class:`~smca.modeling.smca_decoder.SMCADecoder`; here boxes give the
        centres.
        """
        super().__init__()
        self.query_groups = query_groups
        self.oriented = scale_kind == "oriented"
        self.proposals = proposals
        if proposals is not None:
            self.contents = nn.Embedding(query_groups * num_queries, dim)
        else:
            self.anchors = nn.Embedding(query_groups * num_queries, 4)  # cxcywh as logits
            with torch.no_grad():
                nn.init.zeros_(self.anchors.weight)
                self.anchors.weight[:, :2].uniform_(*_CENTERS).logit_()
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
                mixed=one_to_many is not None,
            )
        )
        self.norm = nn.LayerNorm(dim)
        self.denoising = denoising
        self.one_to_many = one_to_many

    @classmethod
    def from_config(cls, cfg) -> dict:
        options = SMCADecoder.from_config(cfg)
        del options["center_layers"]
        if cfg.MODEL.SMCA.DENOISING.ENABLED:
            options["denoising"] = Denoising(**Denoising.from_config(cfg))
        if cfg.MODEL.SMCA.TWO_STAGE:
            options["proposals"] = Proposals(**Proposals.from_config(cfg))
        if cfg.MODEL.SMCA.ONE_TO_MANY.ENABLED:
            sizes = DetectionHeads.from_config(cfg)
            options["one_to_many"] = DetectionHeads(**sizes, **cls.head_options)
        return options

    def predict(
        self, memory: Memory, heads: DetectionHeads, targets: Targets | None = None
    ) -> Predictions:
        """See :meth:`~smca.modeling.parts.Decoder.predict`."""
        proposals, noised, start = None, None, None
        if self.proposals is not None:
            proposals, start = self.proposals(memory)
        if self.training and self.denoising is not None and targets is not None:
            noised = self.denoising(targets)
        decoded = self(memory, heads.box_offsets, noised, start)
        predictions = heads(decoded.hidden, decoded.reference)
        if not self.training:
            return predictions
        further: dict[str, Any] = {"proposals": proposals}
        if self.one_to_many is not None:
            further["one_to_many"] = self.one_to_many(decoded.alone, decoded.reference)
        if noised is not None:
            further["noised"] = noised, heads(*decoded.noised)
        return replace(predictions, **further)

    def forward(
        self,
        memory: Memory,
        box_offsets: Callable[[Tensor, int], Tensor] | None = None,
        noised: NoisedQueries | None = None,
        start: Tensor | None = None,
    ) -> Decoded:
        """See :meth:`~smca.modeling.parts.Decoder.forward`; the outputs are normed.

        Args:
            noised: further queries, Q.
            start: boxes of proposals (B, N, 4), as logits, for a decoder that has them.
        """
        assert box_offsets is not None
        reference, target = self._start(start, memory.tokens.shape[0])
        count = target.shape[1]
        memory = memory.for_decoder()
        if noised is not None:
            reference = torch.cat((reference, noised.reference), dim=1)
            target = torch.cat((target, noised.content), dim=1)
        places = Places.of(reference[..., :2], memory, oriented=self.oriented)
        outputs: list[Tensor] = []
        before: list[Tensor] = []
        references: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            if number > 0:
                # Gradients stay within a layer: the next one starts from a given box.
                reference = (reference + box_offsets(outputs[-1], number - 1)).detach()
                places = places.starting_at(reference[..., :2], memory)
            position = self.embed(reference)
            target = layer(target, position, memory, places, self.groups_in_use, noised)
            if self.one_to_many is not None:
                target, alone = target
                before.append(alone)
            outputs.append(self.norm(target))
            references.append(reference)
        if not self.training:
            outputs, before, references = outputs[-1:], [], references[-1:]
        hidden, reference = torch.stack(outputs), torch.stack(references)
        alone = torch.stack(before)[:, :, :count] if before else None
        groups = self.groups_in_use
        return Decoded(
            hidden=by_group(hidden[:, :, :count], groups),
            reference=by_group(reference[:, :, :count], groups),
            alone=None if alone is None else by_group(alone, groups),
            noised=(hidden[:, :, count:], reference[:, :, count:]),
        )

    def _start(self, proposed: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """The boxes (B, N, 4), as logits, and the contents (B, N, C) of the first layer's queries.

        N counts the queries of all groups.
        """
        if proposed is None:
            anchors = self.in_use(self.anchors).expand(batch, -1, -1)
            return anchors, anchors.new_zeros(*anchors.shape[:2], self.norm.weight.shape[0])
        contents = self.in_use(self.contents).expand(batch, -1, -1)
        return proposed.repeat(1, self.groups_in_use, 1), contents

    def embed(self, reference: Tensor) -> Tensor:
        """Return the positions (B, N, C) of queries that are boxes, cxcywh as logits (B, N, 4)."""
        with full_precision(reference.device):  # half precisions would blur places
            x, y, w, h = (reference.sigmoid() * (2 * math.pi)).unbind(-1)
            angles = torch.stack((y, x, w, h), dim=-1)
            channels = self.norm.weight.shape[0] // 2
            return self.position(sine_embedding(angles, channels).flatten(-2))
