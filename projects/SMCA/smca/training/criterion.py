"""The set loss of all decoder layers in one call (paper, section 4.1).

Shapes: Y decoder layers, B images, N queries, K logits a query, P matched pairs.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import mean_over_workers, world_size
from ..structures import Predictions
from .matcher import HungarianMatcher, Matches, Targets, box_iou, generalized_iou


@dataclass(kw_only=True, eq=False)
class SetCriterion:
    """Matches predictions to objects and computes weighted class, L1 and GIoU losses.

    Attributes:
        matcher: assigns queries to objects.
        class_weight, l1_weight, giou_weight: weights of the three losses.
        classification: kind of the class loss:
            "focal": sigmoid focal loss;
            "softmax": cross-entropy, whose last logit is for no object (DETR as published);
            "mal", "ia_bce": sigmoid losses whose target for a matched query grows with its box's
            IoU (DEIM, arXiv 2412.04234; Align-DETR, arXiv 2304.07527).
        alpha, gamma: parameters of the focal loss.
        iou_gamma: power of the IoU, and of the probabilities that weigh background, in "mal".
        no_object_weight: weight of no object in the cross-entropy.
        auxiliary: supervise every layer, not only the last.
    """

    matcher: HungarianMatcher
    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    classification: str = "focal"
    alpha: float = 0.25
    gamma: float = 2.0
    iou_gamma: float = 1.5
    no_object_weight: float = 0.1
    auxiliary: bool = True

    @classmethod
    def from_config(cls, cfg) -> dict:
        loss = cfg.MODEL.SMCA.LOSS
        return {
            "matcher": HungarianMatcher(**HungarianMatcher.from_config(cfg)),
            "class_weight": loss.CLASS_WEIGHT,
            "l1_weight": loss.L1_WEIGHT,
            "giou_weight": loss.GIOU_WEIGHT,
            "classification": loss.CLASSIFICATION,
            "alpha": loss.FOCAL_ALPHA,
            "gamma": loss.FOCAL_GAMMA,
            "iou_gamma": loss.IOU_GAMMA,
            "no_object_weight": loss.NO_OBJECT_WEIGHT,
            "auxiliary": loss.AUXILIARY,
        }

    def __call__(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Compute the weighted losses, ready to be summed.

        Predictions of G groups of queries have G rows an image (Group DETR, arXiv 2207.13085).

        Returns:
            ``loss_class``, ``loss_l1`` and ``loss_giou`` of the last layer, and the same with
            ``_0``, ``_1``, ... of the layers before it.
        """
        if not self.auxiliary:
            logits, boxes = predictions.logits[-1:], predictions.boxes[-1:]
            predictions = replace(predictions, logits=logits, boxes=boxes)
        groups = predictions.logits.shape[1] // len(targets.counts)
        targets = targets.repeat(groups)
        matches = self.matcher(predictions, targets)
        # The number of objects, averaged over the workers; at least 1 a group for all of them
        # together: the loss is the mean of the groups'.
        count = torch.full((), float(sum(targets.counts)), device=predictions.logits.device)
        num_boxes = mean_over_workers(count).clamp(min=groups / world_size())
        class_loss = self._class_loss(predictions, targets, matches, num_boxes)
        l1, giou = self._box_losses(predictions.boxes, targets, matches, num_boxes)
        losses = {
            "class": self.class_weight * class_loss,
            "l1": self.l1_weight * l1,
            "giou": self.giou_weight * giou,
        }
        last = len(predictions.logits) - 1
        return {
            f"loss_{name}" + ("" if layer == last else f"_{layer}"): value
            for name, by_layer in losses.items()
            for layer, value in enumerate(by_layer.unbind())
        }

    def _class_loss(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: Tensor
    ) -> Tensor:
        """(Y,)."""
        logits = predictions.logits
        found = (matches.layer, matches.image, matches.query)
        labels = targets.labels[matches.image, matches.target]
        if self.classification == "softmax":
            return self._cross_entropy(logits, found, labels)
        matched = (*found, labels)
        if self.classification == "focal":
            loss = _focal(logits, 1 - self.alpha, self.gamma)
            loss[matched] = _focal(-logits[matched], self.alpha, self.gamma)
        else:
            power = self.iou_gamma if self.classification == "mal" else 2.0
            loss = _power(logits, power) * F.softplus(logits)
            wanted = targets.boxes[matches.image, matches.target]
            iou = box_iou(predictions.boxes[found].detach(), wanted)
            loss[matched] = self._quality_loss(logits[matched], iou.to(loss.dtype))
        return loss.flatten(1).sum(1) / num_boxes

    def _quality_loss(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Compute the cross-entropy (P,) of matched logits with what their boxes are worth."""
        if self.classification == "mal":
            target = iou**self.iou_gamma
        else:
            target = (_power(logits, 0.25) * iou**0.75).clamp(min=0.01)
        return target * F.softplus(-logits) + (1 - target) * F.softplus(logits)

    def _cross_entropy(
        self, logits: Tensor, found: tuple[Tensor, Tensor, Tensor], labels: Tensor
    ) -> Tensor:
        """(Y,)."""
        num_logits = logits.shape[-1]
        wanted = logits.new_full(logits.shape[:3], num_logits - 1, dtype=torch.int64)
        wanted[found] = labels
        weight = logits.new_ones(num_logits)
        weight[-1:] = self.no_object_weight  # fills; [-1] has a GPU wait for a copy of the number
        loss = F.cross_entropy(logits.movedim(-1, 1), wanted, weight, reduction="none")
        # Zero where no object has no weight and no image has an object; nothing is learned then.
        total = mean_over_workers(weight[wanted].flatten(1).sum(1))
        total = total.clamp(min=torch.finfo(weight.dtype).tiny)
        return loss.flatten(1).sum(1) / total

    @staticmethod
    def _box_losses(
        boxes: Tensor, targets: Targets, matches: Matches, num_boxes: Tensor
    ) -> list[Tensor]:
        """The L1 and the GIoU loss, (Y,) each."""
        found = boxes[matches.layer, matches.image, matches.query]  # (P, 4)
        wanted = targets.boxes[matches.image, matches.target]
        l1 = F.l1_loss(found, wanted, reduction="none").sum(-1)
        giou = 1 - generalized_iou(found, wanted)
        zeros = boxes.new_zeros(len(boxes))
        return [zeros.index_add(0, matches.layer, loss) / num_boxes for loss in (l1, giou)]


def _focal(logits: Tensor, weight: float, gamma: float) -> Tensor:
    """Compute the focal loss of logits that should be low. For high ones pass ``-logits``.

    It equals torchvision's, but needs no dense targets. The power is taken in logarithms, whose
    gradient is finite even where the probability is zero.
    """
    return weight * (gamma * F.logsigmoid(logits)).exp() * F.softplus(logits)


def _power(logits: Tensor, exponent: float) -> Tensor:
    """Return a power of the probabilities as a weight, through which no gradient flows."""
    return (exponent * F.logsigmoid(logits.detach())).exp()
