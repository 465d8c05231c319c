"""UP-DETR's pre-training (arXiv 2011.09094): queries look for random patches of their image.

Shapes: B images, M patches an image, N queries, C channels, F channels of the backbone's last map.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import Predictions, Targets
from .decoder import DETRDecoder
from .heads import DetectionHeads
from .layers import MLP
from .memory import Memory
from .registry import SMCA_DECODER_REGISTRY


@SMCA_DECODER_REGISTRY.register()
class UPDETRDecoder(DETRDecoder):
    """DETR's decoder, whose queries each have a patch to find.

    N / M queries one after the other have the same patch, and attend to each other alone. Each
    query also predicts the feature of the patch that it has found.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        num_patches: int,
        dim: int,
        feature_dim: int = 2048,
        patch_dropout: float = 0.1,
        shuffle: bool = False,
        **options: Any,
    ):
        """
        Args:
            num_queries, dim, options: see :class:`~smca.modeling.decoder.DETRDecoder`.
            num_patches: M, a divisor of N.
            feature_dim: F.
            patch_dropout: probability that a query does not see its patch, in training.
            shuffle: in training the embeddings of queries change places in each iteration.
        """
        if num_queries % num_patches:
            raise ConfigError(
                f"MODEL.SMCA.NUM_QUERIES is {num_queries}; it must be a multiple of "
                f"MODEL.SMCA.UP_DETR.NUM_PATCHES ({num_patches})"
            )
        super().__init__(num_queries=num_queries, dim=dim, **options)
        self.num_patches = num_patches
        self.feature_dim = feature_dim
        self.patch_dropout = patch_dropout
        self.shuffle = shuffle
        self.patch2query = nn.Linear(feature_dim, dim)
        self.feature_align = MLP(dim, dim, feature_dim, 2)

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        options = super().from_config(cfg)
        del options["query_groups"]  # patches make the groups
        return {
            **options,
            "num_patches": smca.UP_DETR.NUM_PATCHES,
            "feature_dim": smca.UP_DETR.FEATURE_DIM,
            "patch_dropout": smca.UP_DETR.PATCH_DROPOUT,
            "shuffle": smca.UP_DETR.SHUFFLE,
        }

    def predict(
        self, memory: Memory, heads: DetectionHeads, targets: Targets | None = None
    ) -> Predictions:
        """Find patches.

        Args:
            targets: their ``patches`` are features, (B, m, F); in evaluation m <= M, for which
                there are m * N / M queries.

        Raises:
            ConfigError: there are no patches: detection starts with fine-tuning.
        """
        if targets is None or targets.patches is None:
            remedy = "fine-tune its checkpoint, as configs/baselines/up_detr_R50_300ep.yaml does"
            if self.training:
                remedy = "pre-train with train_net.py or smca.d2.Trainer, which cut patches out"
            raise ConfigError(
                "MODEL.SMCA.DECODER.NAME is 'UPDETRDecoder', which finds patches, not objects; "
                + remedy
            )
        features = targets.patches
        groups = features.shape[1]
        hidden, reference = self.decode(memory, self.embeddings(features), groups)
        # The matcher gives any patch of the image to any query.
        hidden = hidden.unflatten(1, (-1, groups)).flatten(2, 3)
        predicted = self.feature_align(hidden)
        return replace(heads(hidden, reference), features=(features.detach(), predicted))

    def embeddings(self, features: Tensor) -> Tensor:
        """The embeddings (B, m * N / M, C) of queries for patches of these features (B, m, F)."""
        number = len(self.query_embed.weight) // self.num_patches  # of queries a patch
        embedding = self.query_embed.weight
        patch = self.patch2query(features).repeat_interleave(number, dim=1)
        if self.training:
            if self.shuffle:
                embedding = embedding[torch.randperm(len(embedding), device=embedding.device)]
            seen = torch.rand(patch.shape[:2], device=patch.device) >= self.patch_dropout
            patch = patch * seen[..., None]
        return embedding[: patch.shape[1]] + patch
