"""The contracts of a detector's parts, for those who write a backbone, an encoder or a decoder.

Shapes: B images, N queries, L tokens of all scales, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..structures import Predictions, Size, Targets
from .heads import DetectionHeads
from .memory import Memory


class BaseDetector(nn.Module):
    """A detector as both hosts and the tools know it, from normalised pixels to predictions.

    Attributes:
        class_names: names of the classes by contiguous index, of the training data or of the
            checkpoint that was loaded; None where they are not known.
        backbone: one of this project's, or in Detectron2's host any of that.
        in_features: names of the backbone's maps that it reads.
        strides: pixels a cell of its own maps, from fine to coarse.
        has_attention_maps: its decoder's layers have a ``co_attention`` with maps to draw.
    """

    class_names: Sequence[str] | None = None
    backbone: nn.Module
    in_features: Sequence[str]
    strides: Sequence[int]
    has_attention_maps: bool = False

    def forward(
        self, images: Tensor, sizes: Sequence[Size], targets: Targets | None = None
    ) -> Predictions:
        """Run :meth:`predict`. A host may have another ``forward`` around it."""
        return self.predict(images, sizes, targets)

    def predict(
        self, images: Tensor, sizes: Sequence[Size], targets: Targets | None = None
    ) -> Predictions:
        """Predict classes and boxes.

        Args:
            images: (B, 3, H, W), normalised, padded with zeros at the right and the bottom.
            sizes: (h, w) of each image in pixels, without its padding, or one for all of them.
            targets: the objects, for detectors that need them in training, or the patches to
                pre-train with.
        """
        raise NotImplementedError

    def features(self, images: Tensor, sizes: Sequence[Size]) -> Mapping[str, Tensor]:
        """The backbone's maps of images as :meth:`predict` takes them, by name."""
        padded = any(tuple(size) != tuple(images.shape[-2:]) for size in sizes)
        return self.backbone(images, sizes if padded else None)


class Part(nn.Module):
    """A part of the detector that a configuration can build."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the constructor's arguments. Nothing else in a part reads a configuration."""
        return {}


class Backbone(Part):
    """Maps images to named maps.

    Attributes:
        strides: pixels a cell of each map it returns, by name.
        channels: channels of each of these maps, by name.
    """

    strides: Mapping[str, int]
    channels: Mapping[str, int]

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> Mapping[str, Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised, padded with zeros at the right and the bottom.
            sizes: (h, w) of each image without its padding, or one for all of them; None when no
                image is padded. With them a backbone can keep padding out of its maps; it may
                ignore them.

        Returns:
            maps (B, channels, ceil(H / stride), ceil(W / stride)) by name.
        """
        raise NotImplementedError


class Encoder(Part):
    """Maps a memory to a memory.

    Attributes:
        halves: the encoder needs scales that each have twice the stride of the one before.
        embeds_one_scale: see :class:`~smca.modeling.neck.Neck`.
        pre_norm: its blocks norm their inputs (MODEL.SMCA.PRE_NORM).
    """

    halves: bool = False
    embeds_one_scale: bool = False
    pre_norm: bool = False

    def forward(self, memory: Memory) -> Memory:
        raise NotImplementedError


class Decoder(Part):
    """Maps a memory to the outputs of decoder layers, which the detection heads read.

    Attributes:
        head_options: arguments that its :class:`~smca.modeling.heads.DetectionHeads` need besides
            their sizes.
        query_groups: G, the groups of N queries that it trains (MODEL.SMCA.QUERY_GROUPS).
        pre_norm: its layers norm their inputs (MODEL.SMCA.PRE_NORM).
        feature_dim: channels that it needs of the backbone's last map, to pre-train; None: any.
        denoising: makes noised queries of a training step's objects, or None.
        proposals: finds boxes in the image where queries start, or None.
        one_to_many: heads through which an object teaches several queries, or None.
        has_attention_maps: each of its ``layers`` has a ``co_attention`` with a method
            ``weights``, which returns the weights of all keys, for pictures.
    """

    head_options: Mapping[str, Any] = {}
    query_groups: int = 1
    pre_norm: bool = False
    feature_dim: int | None = None
    has_attention_maps: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.denoising: nn.Module | None = None
        self.proposals: nn.Module | None = None
        self.one_to_many: nn.Module | None = None

    @property
    def groups_in_use(self) -> int:
        """The number of groups that :meth:`forward` runs: all in training, else the first."""
        return self.query_groups if self.training else 1

    def in_use(self, embedding: nn.Embedding) -> Tensor:
        """The rows of an embedding of all groups' queries that :meth:`forward` runs with."""
        rows = len(embedding.weight) // self.query_groups * self.groups_in_use
        return embedding.weight[:rows]

    def predict(
        self, memory: Memory, heads: DetectionHeads, targets: Targets | None = None
    ) -> Predictions:
        """Run :meth:`forward` and the heads.

        Args:
            memory: the encoded image.
            heads: read the outputs.
            targets: the objects, for a decoder that learns from more than its queries' matches.
        """
        return heads(*self(memory, heads.box_offsets))

    def forward(
        self, memory: Memory, box_offsets: Callable[[Tensor, int], Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            memory: the encoded image.
            box_offsets: :meth:`~smca.modeling.heads.DetectionHeads.box_offsets`, for a decoder
                whose layers start from the boxes of the layer before; others ignore it.

        Returns:
            the outputs of the layers (layers, B, N, C), in evaluation of the last one only; and
            where boxes start, as logits: points x, y (B, N, 2) for all layers, boxes cxcywh
            (layers, B, N, 4) of each layer, or None. In training each group of queries counts as
            an image of its own: B * G instead of B, the groups of an image side by side.
        """
        raise NotImplementedError
