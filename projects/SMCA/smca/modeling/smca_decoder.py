"""Decoder with spatially modulated co-attention (Eqs. 3-9).

Shapes: B images, N queries, L keys, C channels, H heads, S scales.
"""

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..structures import NoisedQueries
from .attention import attention_weights
from .decoder import CoAttention, DecoderLayer, QueryDecoder, QuerySelfAttention
from .layers import FFN, MLP, linear
from .memory import Memory
from .registry import SMCA_DECODER_REGISTRY
from .spatial_prior import Places, Prior, SpatialPrior


class ModulatedCoAttention(CoAttention):
    """Queries attend to each scale separately, modulated by a prior; the results are summed."""

    def forward(self, target: Tensor, position: Tensor, memory: Memory, prior: Prior) -> Tensor:
        """Attended content (B, N, C); ``prior`` has log G of each scale and how much it counts."""
        query, key, value = self.project(target, position, memory)
        keys, values = key.split(memory.lengths, dim=2), value.split(memory.lengths, dim=2)
        scales = zip(keys, values, prior.biases, strict=True)
        attended = [self.attend(query, key, value, [bias]) for key, value, bias in scales]
        if prior.selection is not None:
            shares = prior.selection.to(query.dtype)[:, None, ..., None].unbind(3)
            attended = [part * share for part, share in zip(attended, shares, strict=True)]
        return self.out_proj(self.merge_heads(reduce(torch.add, attended)))

    def weights(
        self, target: Tensor, position: Tensor, memory: Memory, prior: Prior
    ) -> list[Tensor]:
        """The attention weights of each scale, (B, H, N, L_s), for pictures."""
        query, key, _ = self.project(target, position, memory)
        scales = zip(key.split(memory.lengths, dim=2), prior.biases, strict=True)
        return [attention_weights(query, key, biases=[bias]) for key, bias in scales]


class ModulatedLayer(DecoderLayer):
    """A layer that predicts a prior from its input and modulates its co-attention with it."""

    def __init__(self, *, prior: SpatialPrior, **options: Any):
        """See :class:`DecoderLayer` for the options."""
        super().__init__(**options)
        self.prior = prior

    def guide(self, target: Tensor, position: Tensor, places: Places) -> Prior:
        # The prior is not compiled. Called first, it leaves all that follows in one graph.
        return self.prior(target, position, places)


class MixedLayer(ModulatedLayer):
    """A layer whose queries look at the image first and at each other then (MS-DETR)."""

    def __init__(self, *, observing_ffn: nn.Module, dim: int, **options: Any):
        """
        Args:
            observing_ffn: maps (B, N, C) to (B, N, C) between the two.

        See :class:`~smca.modeling.decoder.DecoderLayer` for the others.
        """
        super().__init__(dim=dim, **options)
        self.observing_ffn = observing_ffn
        self.norm4 = nn.LayerNorm(dim)

    def forward(
        self,
        target: Tensor,
        position: Tensor,
        memory: Memory,
        places: Places,
        groups: int = 1,
        noised: NoisedQueries | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the content (B, N, C) after both, and what it was between them."""
        prior = self.guide(target, position, places)
        target = self.residual(
            target, lambda x: self.co_attention(x, position, memory, prior), self.norm2
        )
        alone = self.residual(target, self.observing_ffn, self.norm4)
        target = self.residual(
            alone, lambda x: self._among_queries(x, position, groups, noised), self.norm1
        )
        return self.residual(target, self.ffn, self.norm3), alone


def modulated_layers(
    *,
    num_layers: int,
    num_scales: int,
    dim: int,
    num_heads: int,
    ffn_dim: int,
    dropout: float,
    attention_dropout: float,
    share_key_value: bool,
    per_head: bool,
    scale_kind: str,
    beta: float,
    scale_selection: bool,
    predicts_centers: bool,
    mixed: bool = False,
) -> list[ModulatedLayer]:
    """Make the layers of a decoder with modulated co-attention; see :class:`SMCADecoder`.

    Args:
        predicts_centers: the decoder predicts its centres from what the first layer observes.
        mixed: make :class:`MixedLayer`.
    """
    heads: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "dropout": attention_dropout}

    def layer(**options: Any) -> ModulatedLayer:
        if mixed:
            return MixedLayer(observing_ffn=FFN(dim, ffn_dim, dropout), **options)
        return ModulatedLayer(**options)

    return [
        layer(
            self_attention=QuerySelfAttention(**heads),
            co_attention=ModulatedCoAttention(
                **heads, key_sets=1 if share_key_value else num_scales
            ),
            ffn=FFN(dim, ffn_dim, dropout),
            prior=SpatialPrior(
                dim=dim,
                num_heads=num_heads,
                num_scales=num_scales,
                per_head=per_head,
                kind=scale_kind,
                beta=beta,
                scale_selection=scale_selection,
                centers=predicts_centers and number == 0,
            ),
            dim=dim,
            dropout=dropout,
        )
        for number in range(num_layers)
    ]


@SMCA_DECODER_REGISTRY.register()
class SMCADecoder(QueryDecoder):
    """Queries that look around a centre they predict."""

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
        query_groups: int = 1,
    ):
        """
        Args:
            num_layers, num_queries, dim, num_heads, ffn_dim, dropout, attention_dropout,
                query_groups: see :class:`~smca.modeling.decoder.DETRDecoder`.
            num_scales: S.
            share_key_value: one key and value projection for all scales, or one a scale.
            per_head, scale_kind, beta, scale_selection: see :class:`SpatialPrior`.
            center_layers: linear layers of the MLP that predicts the centre.
        """
        layers = modulated_layers(
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
            predicts_centers=True,
        )
        super().__init__(num_queries=num_queries, dim=dim, layers=layers, query_groups=query_groups)
        self.center = MLP(dim, dim, 2, center_layers, make=linear)
        self.oriented = scale_kind == "oriented"

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            **super().from_config(cfg),
            "num_scales": smca.NUM_SCALES,
            "share_key_value": smca.DECODER.SHARE_KEY_VALUE,
            "per_head": smca.MODULATION.HEADS == "multi",
            "scale_kind": smca.MODULATION.SCALE,
            "beta": smca.MODULATION.BETA,
            "center_layers": smca.MODULATION.CENTER_LAYERS,
            "scale_selection": smca.DECODER.SCALE_SELECTION,
        }

    def initial_reference(self, position: Tensor) -> Tensor:
        """The centres, from what the first layer observes: the embeddings alone (Eq. 3)."""
        first: Any = self.layers[0]
        return self.center(first.prior.norm(position))

    def places(self, reference: Tensor, memory: Memory) -> Places:
        """Where queries start and where keys are."""
        return Places.of(reference, memory, oriented=self.oriented)
