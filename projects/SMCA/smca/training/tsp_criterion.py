"""The losses of TSP-FCOS (arXiv 2011.10881): a set loss of classes, FCOS's of boxes.

Shapes: B images, L places of all levels, N of them encoded, M objects of the fullest image, K
classes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import mean_over_workers
from ..modeling.fcos import distances_to_sides
from ..structures import Predictions, Targets, to_device
from .focal import focal_loss
from .matcher import restricted_matches

_GIOU_COST = 2.0
# How much a place's own class counts where another place is matched to its object.
_UNMATCHED = 0.1
_LEAST = 1e-6


@dataclass(kw_only=True, eq=False)
class TSPCriterion:
    """Matches each object to one of its places, and computes the losses.

    A place is positive if FCOS assigns an object to it.

    Attributes:
        alpha, gamma: parameters of the focal loss.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    classification: ClassVar[str] = "focal"

    @classmethod
    def from_config(cls, cfg) -> dict:
        loss = cfg.MODEL.SMCA.LOSS
        return {"alpha": loss.FOCAL_ALPHA, "gamma": loss.FOCAL_GAMMA}

    def __call__(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Compute the losses, ready to be summed.

        Returns:
            ``loss_local`` of the classifier by which places are chosen; ``loss_class``,
            ``loss_giou`` and ``loss_centerness`` of the encoded places.
        """
        found, logits = predictions.places, predictions.logits[0]
        assert found is not None and found.assigned is not None and targets.pixel_boxes is not None
        everywhere, index = found.assigned  # (B, L), (B, N)
        places, positive = everywhere >= 0, index >= 0
        # One object more, for places that have none.
        labels = F.pad(targets.labels, (0, 1))
        boxes = F.pad(to_device(targets.pixel_boxes, labels.device), (0, 0, 0, 1))
        own_box = boxes.gather(1, _or_last(index, boxes)[..., None].expand(-1, -1, 4))
        wanted = distances_to_sides(found.points, own_box) / found.strides[..., None]
        wanted = wanted.where(positive[..., None], 1.0)
        centerness = _centerness(wanted)
        loss_giou = 1 - _generalized_iou(found.distances, wanted)
        own = logits.gather(2, labels.gather(1, _or_last(index, labels))[..., None])[..., 0]
        with torch.no_grad():
            cost = -own.sigmoid() * (centerness + _LEAST) + _GIOU_COST * loss_giou
            matched = restricted_matches(cost, index, targets.labels.shape[1])
        counts = torch.stack([mask.sum() for mask in (places, positive, matched)])
        counts = mean_over_workers(counts.to(centerness.dtype)).clamp(min=1)
        num_places, num_positive, num_matched = counts.unbind()
        weight = centerness * positive
        local_own = labels.gather(1, _or_last(everywhere, labels))[..., None]
        of_center = F.binary_cross_entropy_with_logits(
            found.centerness, centerness, reduction="none"
        )
        # Positive places that are not matched count less as background.
        low, high = self._low(own), focal_loss(-own, self.alpha, self.gamma)
        corrected = torch.where(matched, high - low, (_UNMATCHED - 1) * low) * positive
        return {
            "loss_local": self._focal(found.local_logits, local_own, places) / num_places,
            "loss_class": (self._low(logits).sum() + corrected.sum())
            / (2 * (num_matched + _UNMATCHED * num_positive)),
            "loss_giou": (weight * loss_giou).sum()
            / mean_over_workers(weight.sum()).clamp(min=_LEAST),
            "loss_centerness": (of_center * positive).sum() / num_positive,
        }

    def _low(self, logits: Tensor) -> Tensor:
        return focal_loss(logits, 1 - self.alpha, self.gamma)

    def _focal(self, logits: Tensor, labels: Tensor, positive: Tensor) -> Tensor:
        """The sum of the focal loss of all logits (B, L, K), with labels (B, L, 1)."""
        own = logits.gather(2, labels)[..., 0]
        difference = focal_loss(-own, self.alpha, self.gamma) - self._low(own)
        return self._low(logits).sum() + difference.where(positive, 0.0).sum()


def _or_last(index: Tensor, objects: Tensor) -> Tensor:
    """Return indices of ``objects`` (B, M + 1, ...), the last one where ``index`` is -1."""
    return index % objects.shape[1]


def _centerness(distances: Tensor) -> Tensor:
    """FCOS's centre-ness (...) of positive distances (..., 4) to the sides of a box."""
    left, top, right, bottom = distances.unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


def _generalized_iou(distances: Tensor, others: Tensor) -> Tensor:
    """FCOS's GIoU (...) of boxes around one point, by their distances (..., 4) in strides.

    Its IoU has 1 added to both areas.
    """
    inter = _area(torch.minimum(distances, others))
    union = _area(distances) + _area(others) - inter
    hull = _area(torch.maximum(distances, others))
    return (inter + 1) / (union + 1) - (hull - union) / hull


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(-1)
    return (left + right) * (top + bottom)
