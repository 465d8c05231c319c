"""TSP-FCOS (arXiv 2011.10881): FCOS's best places are the tokens of a transformer's encoder.

Shapes: B images, S levels, L places of all levels, N of them encoded, C channels of tokens, K
classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..errors import ConfigError
from ..structures import PlacePredictions, Predictions, Size, Targets, to_device
from .encoder import IntraMultiEncoder
from .fcos import Grid, Towers
from .fpn import FPN
from .layers import compile_layers, full_precision, logit
from .memory import Memory, numbers_on
from .parts import BaseDetector, Encoder
from .position_encoding import sine_embedding

NUM_LEVELS = 5
# The pyramid halves and doubles maps of images whose sides this divides.
_DIVISOR = 32


class PlaceHeads(nn.Module):
    """Class, box and centre-ness of tokens. They compute in float32, whatever autocast says."""

    def __init__(self, *, dim: int, num_classes: int):
        super().__init__()
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = nn.Linear(dim, 4)
        self.centerness_head = nn.Linear(dim, 1)
        for head, bias in ((self.class_head, logit(0.01)), (self.centerness_head, 0.0)):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.constant_(head.bias, bias)
        self.scales = nn.Parameter(torch.ones(NUM_LEVELS))

    def forward(self, tokens: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits (B, N, K), distances (B, N, 4) in strides, centre-ness (B, N)."""
        with full_precision(tokens.device):
            tokens = tokens.to(self.scales.dtype)
            distances = F.relu(self.box_head(tokens)) * self.scales[levels][..., None]
            return self.class_head(tokens), distances, self.centerness_head(tokens)[..., 0]


class TSPFCOS(BaseDetector):
    """Backbone, feature pyramid, FCOS's towers, encoder of the best places, and heads."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pyramid: FPN,
        towers: Towers,
        encoder: Encoder,
        heads: PlaceHeads,
        pyramid_dim: int,
        dim: int,
        num_features: int = 700,
        least_kept: float = 0.7,
        nms_thresh: float = 0.6,
    ):
        """
        Args:
            backbone: see :class:`~smca.modeling.parts.BaseDetector`.
            pyramid: of five levels with ``pyramid_dim`` channels each.
            towers, heads: read its maps, and the encoded tokens.
            encoder: maps tokens of C = ``dim`` channels to tokens.
            num_features: the most places that are encoded.
            least_kept: the least part of them that is kept in training.
            nms_thresh: see :class:`~smca.structures.PlacePredictions`.
        """
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.towers = towers
        self.level_embed = nn.Parameter(torch.ones(NUM_LEVELS, dim))
        self.proj = nn.Linear(2 * pyramid_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.encoder = encoder
        self.heads = heads
        self.dim = dim
        self.num_features = num_features
        self.least_kept = least_kept
        self.nms_thresh = nms_thresh

    @property
    def in_features(self) -> Sequence[str]:
        return self.pyramid.in_features

    @property
    def strides(self) -> Sequence[int]:
        return self.pyramid.strides

    def predict(
        self, images: Tensor, sizes: Sequence[Size], targets: Targets | None = None
    ) -> Predictions:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % _DIVISOR, 0, -height % _DIVISOR))
        # The published model does not tell padding from an image before it encodes positions.
        maps = self.pyramid(self.features(images, [(images.shape[-2], images.shape[-1])]))
        grid = Grid.of(maps, self.strides)
        features, local = self.towers(maps)
        assigned = None
        if self.training and targets is not None and targets.pixel_boxes is not None:
            assigned = grid.assign(to_device(targets.pixel_boxes, images.device))
        chosen = self.choose(local, assigned)  # (B, N)
        levels = grid.levels[chosen]
        tokens = self.norm(self.proj(_gather(features, chosen)))
        memory = Memory(
            tokens=tokens,
            positions=self.positions(grid, chosen, sizes),
            shapes=((chosen.shape[1], 1),),  # of one map, as attention sees it
            strides=(1,),
            valid_sizes=tokens.new_ones(1, 1, 2),
            padding=None,
        )
        logits, distances, centerness = self.heads(self.encoder(memory).tokens, levels)
        points, strides = grid.points[chosen], numbers_on(images.device, self.strides)[levels]
        return Predictions(
            logits=logits[None],
            boxes=_boxes(points, distances * strides[..., None], sizes)[None],
            centers=None,
            places=PlacePredictions(
                levels=levels,
                num_levels=NUM_LEVELS,
                nms_thresh=self.nms_thresh,
                local_logits=local,
                points=points,
                strides=strides,
                distances=distances,
                centerness=centerness,
                assigned=None if assigned is None else (assigned, assigned.gather(1, chosen)),
            ),
        )

    @torch.no_grad()
    def choose(self, logits: Tensor, assigned: Tensor | None) -> Tensor:
        """Return the indices (B, N) of the places to encode, in training a part of the best ones.

        Args:
            logits: (B, L, K) of all places; their score is their best class's.
            assigned: (B, L), -1 where no object is learned, or None. Others score half way to 1.
        """
        scores = logits.amax(-1).sigmoid()
        if assigned is not None:
            scores = torch.where(assigned >= 0, (scores + 1) / 2, scores)
        number = min(self.num_features, scores.shape[1])
        best = scores.topk(number).indices
        if not self.training:
            return best
        kept = self.least_kept + (1 - self.least_kept) * float(torch.rand(()))
        order = torch.randperm(number, device=best.device)
        return best[:, order[: max(1, int(kept * number))]]

    def positions(self, grid: Grid, chosen: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Return the encodings (B, N, C) of places: of their cells by sines, and of their levels.

        Cells are counted from 1 over those that the image covers, y in the first half.
        """
        covered = [grid.covered(size) for size in sizes]
        levels, cells = grid.levels[chosen], grid.cells[chosen]
        counts = numbers_on(chosen.device, covered, self.level_embed.dtype)
        counts = _gather(counts.expand(chosen.shape[0], -1, -1), levels)  # (B, N, 2)
        # In padding the count stands still, and along the other axis it is 0.
        beside = (cells <= counts).flip(-1)
        angles = torch.minimum(cells, counts) * beside / (counts + 1e-6) * (2 * math.pi)
        return sine_embedding(angles, self.dim // 2).flatten(-2) + self.level_embed[levels]


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """Return the rows (B, N, C) of (B, L, C) at an index (B, N)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def _boxes(points: Tensor, distances: Tensor, sizes: Sequence[Size]) -> Tensor:
    """Return boxes (B, N, 4) cxcywh, as fractions of the images, from distances in pixels."""
    corners = torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)
    scale = numbers_on(points.device, [(w, h, w, h) for h, w in sizes], points.dtype)
    return box_convert(corners / scale[:, None], "xyxy", "cxcywh")


def tsp_parts(
    cfg: CfgNode, backbone: nn.Module, strides: Sequence[int], channels: Sequence[int]
) -> dict[str, Any]:
    """Build the parts around a backbone: the constructor arguments of :class:`TSPFCOS`.

    Args:
        backbone: is returned with the others.
        strides, channels: of its maps MODEL.SMCA.IN_FEATURES.

    Raises:
        ConfigError: a value that TSP-FCOS cannot have.
    """
    smca, tsp = cfg.MODEL.SMCA, cfg.MODEL.SMCA.TSP
    if list(strides) != [8, 16, 32]:
        raise ConfigError(
            f"MODEL.SMCA.IN_FEATURES is {smca.IN_FEATURES}, of strides {list(strides)}; TSP-FCOS "
            "needs strides 8, 16 and 32, of a ResNet res3, res4 and res5"
        )
    for key, value, wanted in (
        ("LOSS.CLASSIFICATION", smca.LOSS.CLASSIFICATION, "focal"),
        ("QUERY_GROUPS", smca.QUERY_GROUPS, 1),
        ("TWO_STAGE", smca.TWO_STAGE, False),
        ("DENOISING.ENABLED", smca.DENOISING.ENABLED, False),
        ("ONE_TO_MANY.ENABLED", smca.ONE_TO_MANY.ENABLED, False),
    ):
        if value != wanted:
            raise ConfigError(
                f"MODEL.SMCA.{key} is {value!r}; it must be {wanted!r} with TSPFCOS, which has no "
                "queries"
            )
    encoder = IntraMultiEncoder(**IntraMultiEncoder.from_config(cfg) | {"num_scales": 1})
    if smca.COMPILE:
        compile_layers(encoder)
    return {
        "backbone": backbone,
        "pyramid": FPN(
            in_features=smca.IN_FEATURES,
            in_channels=channels,
            in_strides=strides,
            dim=tsp.PYRAMID_DIM,
        ),
        "towers": Towers(dim=tsp.PYRAMID_DIM, num_classes=smca.NUM_CLASSES),
        "encoder": encoder,
        "heads": PlaceHeads(dim=smca.HIDDEN_DIM, num_classes=smca.NUM_CLASSES),
        "pyramid_dim": tsp.PYRAMID_DIM,
        "dim": smca.HIDDEN_DIM,
        "num_features": tsp.NUM_FEATURES,
        "least_kept": tsp.LEAST_KEPT,
        "nms_thresh": tsp.NMS_THRESH,
    }
