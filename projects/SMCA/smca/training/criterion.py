"""The set loss of all decoder layers in one call (paper, section 4.1).

Shapes: Y decoder layers, B images, N queries, K logits a query, P matched pairs.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import mean_over_workers, world_size
from ..structures import NoisedQueries, Predictions, Targets, to_device
from .assigner import TopKAssigner
from .focal import focal_loss
from .matcher import HungarianMatcher, box_iou, generalized_iou


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
        feature_weight: weight of the distance of patches' features, to pre-train (UP-DETR, arXiv
            2011.09094).
        iou_gamma: power of the IoU, and of the probabilities that weigh background, in "mal".
        no_object_weight: weight of no object in the cross-entropy.
        auxiliary: supervise every layer, not only the last.
        assigner: assigns queries to objects for one-to-many supervision.
    """

    matcher: HungarianMatcher
    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    feature_weight: float = 1.0
    classification: str = "focal"
    alpha: float = 0.25
    gamma: float = 2.0
    iou_gamma: float = 1.5
    no_object_weight: float = 0.1
    auxiliary: bool = True
    assigner: TopKAssigner = TopKAssigner()

    @classmethod
    def from_config(cls, cfg) -> dict:
        loss = cfg.MODEL.SMCA.LOSS
        return {
            "matcher": HungarianMatcher(**HungarianMatcher.from_config(cfg)),
            "class_weight": loss.CLASS_WEIGHT,
            "l1_weight": loss.L1_WEIGHT,
            "giou_weight": loss.GIOU_WEIGHT,
            "feature_weight": loss.FEATURE_WEIGHT,
            "classification": loss.CLASSIFICATION,
            "alpha": loss.FOCAL_ALPHA,
            "gamma": loss.FOCAL_GAMMA,
            "iou_gamma": loss.IOU_GAMMA,
            "no_object_weight": loss.NO_OBJECT_WEIGHT,
            "auxiliary": loss.AUXILIARY,
            "assigner": TopKAssigner(**TopKAssigner.from_config(cfg)),
        }

    def __call__(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Compute the weighted losses, ready to be summed.

        Predictions of G groups of queries have G rows an image (Group DETR, arXiv 2207.13085).

        Returns:
            ``loss_class``, ``loss_l1`` and ``loss_giou`` of the last layer, and the same with
            ``_0``, ``_1``, ... of the layers before it; also ``loss_class_enc``, ... with two
            stages, ``loss_class_many``, ... with one-to-many supervision, ``loss_class_dn``, ...
            with denoising, and ``loss_feature``, ... where it learns features.
        """
        if not self.auxiliary:
            logits, boxes = predictions.logits[-1:], predictions.boxes[-1:]
            predictions = replace(predictions, logits=logits, boxes=boxes)
        losses = self._matched_losses(predictions, targets)
        if predictions.proposals is not None:
            losses |= self._matched_losses(predictions.proposals, targets, suffix="_enc")
        if predictions.one_to_many is not None:
            losses |= self._assigned_losses(predictions.one_to_many, targets)
        if predictions.noised is not None:
            noised, found = predictions.noised
            losses |= self._noised_losses(noised, found)
        return losses

    def _matched_losses(
        self, predictions: Predictions, targets: Targets, suffix: str = ""
    ) -> dict[str, Tensor]:
        """The losses of one kind of queries, matched: ``loss_class``, ..."""
        groups = predictions.logits.shape[1] // len(targets.counts)
        targets = targets.repeat(groups)
        matches = self.matcher(predictions, targets)
        found = matches.layer, matches.image, matches.query
        features = None
        if predictions.features is not None:
            known, predicted = predictions.features
            predicted = predicted[-len(predictions.logits) :]
            features = _distance(predicted[found], known[matches.image, matches.target])
        return self._losses(
            predictions,
            found,
            labels=targets.labels[matches.image, matches.target],
            boxes=targets.boxes[matches.image, matches.target],
            # The number of objects; at least 1 a group: the loss is the mean of the groups'.
            count=_filled(sum(targets.counts), predictions.logits),
            least=groups,
            features=features,
            suffix=suffix,
        )

    def _assigned_losses(self, found: Predictions, targets: Targets) -> dict[str, Tensor]:
        """The same losses with one-to-many assignment: ``loss_class_many``, ..."""
        if not self.auxiliary:
            found = replace(found, logits=found.logits[-1:], boxes=found.boxes[-1:])
        targets = targets.repeat(found.logits.shape[1] // len(targets.counts))
        assigned = self.assigner(found, targets)
        wanted, index = assigned >= 0, assigned.clamp(min=0)
        # Every query has a place in the sums, so that nothing waits to know which have an object.
        places = to_device(torch.ones(assigned.shape).nonzero(), assigned.device)
        layer, image, query = places.unbind(1)
        one_more = F.pad(targets.labels, (0, 1)), F.pad(targets.boxes, (0, 0, 0, 1))
        labels, boxes = (x[image, index.flatten()] for x in one_more)
        return self._losses(
            found,
            (layer, image, query),
            labels=labels,
            boxes=boxes,
            count=wanted.sum((1, 2)).to(found.boxes.dtype),
            least=1,
            wanted=wanted.flatten(),
            suffix="_many",
        )

    def _noised_losses(self, noised: NoisedQueries, found: Predictions) -> dict[str, Tensor]:
        """The same losses of noised queries, without matching: ``loss_class_dn``, ..."""
        if not self.auxiliary:
            found = replace(found, logits=found.logits[-1:], boxes=found.boxes[-1:])
        layers, number = len(found.logits), len(noised.labels)
        every = torch.arange(layers, device=found.logits.device).repeat_interleave(number)
        return self._losses(
            found,
            (every, noised.image.repeat(layers), noised.query.repeat(layers)),
            labels=noised.labels.repeat(layers),
            boxes=noised.boxes.repeat(layers, 1),
            count=_filled(number, found.logits),
            least=1,
            idle=None if noised.idle is None else noised.idle.repeat(1, noised.sets),
            suffix="_dn",
        )

    def _losses(
        self,
        predictions: Predictions,
        found: tuple[Tensor, Tensor, Tensor],
        *,
        labels: Tensor,
        boxes: Tensor,
        count: Tensor,
        least: int,
        idle: Tensor | None = None,
        wanted: Tensor | None = None,
        features: Tensor | None = None,
        suffix: str = "",
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of all layers by name.

        Args:
            found: layer, image and query (P,) of the predictions that have an object.
            labels, boxes: (P,) and (P, 4), these objects.
            count: of objects that divides the losses, averaged over the workers; or (Y,).
            least: of this count in all workers together.
            idle: (B, N), True where a query does not count.
            wanted: (P,), True where ``found`` does have an object; None: everywhere.
            features: (P,), how far predicted features are from those of the patches.
            suffix: of the names.
        """
        num_boxes = mean_over_workers(count).clamp(min=least / world_size())
        class_loss = self._class_loss(predictions, found, labels, boxes, num_boxes, idle, wanted)
        by_name = {"class": self.class_weight * class_loss}
        own = predictions.boxes[found]  # (P, 4)
        by_pair = {
            "l1": (self.l1_weight, F.l1_loss(own, boxes, reduction="none").sum(-1)),
            "giou": (self.giou_weight, 1 - generalized_iou(own, boxes)),
        }
        if features is not None:
            by_pair["feature"] = (self.feature_weight, features)
        zeros = own.new_zeros(len(predictions.logits))
        for name, (weight, loss) in by_pair.items():
            if wanted is not None:
                loss = loss * wanted
            by_name[name] = weight * (zeros.index_add(0, found[0], loss) / num_boxes)
        last = len(predictions.logits) - 1
        return {
            f"loss_{name}{suffix}" + ("" if layer == last else f"_{layer}"): value
            for name, by_layer in by_name.items()
            for layer, value in enumerate(by_layer.unbind())
        }

    def _class_loss(
        self,
        predictions: Predictions,
        found: tuple[Tensor, Tensor, Tensor],
        labels: Tensor,
        boxes: Tensor,
        num_boxes: Tensor,
        idle: Tensor | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """(Y,)."""
        logits = predictions.logits
        if self.classification == "softmax":
            return self._cross_entropy(logits, found, labels, idle, wanted)
        matched = (*found, labels)
        if self.classification == "focal":
            loss = focal_loss(logits, 1 - self.alpha, self.gamma)
            high = focal_loss(-logits[matched], self.alpha, self.gamma)
        else:
            power = self.iou_gamma if self.classification == "mal" else 2.0
            loss = _power(logits, power) * F.softplus(logits)
            iou = box_iou(predictions.boxes[found].detach(), boxes)
            high = self._quality_loss(logits[matched], iou.to(loss.dtype))
        loss[matched] = high if wanted is None else torch.where(wanted, high, loss[matched])
        if idle is not None:
            loss = loss.masked_fill(idle[..., None], 0.0)
        return loss.flatten(1).sum(1) / num_boxes

    def _quality_loss(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Compute the cross-entropy (P,) of matched logits with what their boxes are worth."""
        if self.classification == "mal":
            target = iou**self.iou_gamma
        else:
            target = (_power(logits, 0.25) * iou**0.75).clamp(min=0.01)
        return target * F.softplus(-logits) + (1 - target) * F.softplus(logits)

    def _cross_entropy(
        self,
        logits: Tensor,
        found: tuple[Tensor, Tensor, Tensor],
        labels: Tensor,
        idle: Tensor | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """(Y,)."""
        num_logits = logits.shape[-1]
        if wanted is not None:
            labels = labels.where(wanted, num_logits - 1)
        classes = logits.new_full(logits.shape[:3], num_logits - 1, dtype=torch.int64)
        classes[found] = labels
        weight = logits.new_ones(num_logits)
        weight[-1:] = self.no_object_weight  # fills; [-1] has a GPU wait for a copy of the number
        loss = F.cross_entropy(logits.movedim(-1, 1), classes, weight, reduction="none")
        counted = weight[classes]
        if idle is not None:
            loss, counted = loss.masked_fill(idle, 0.0), counted.masked_fill(idle, 0.0)
        # Zero where no object has no weight and no image has an object; nothing is learned then.
        total = mean_over_workers(counted.flatten(1).sum(1))
        total = total.clamp(min=torch.finfo(weight.dtype).tiny)
        return loss.flatten(1).sum(1) / total


def _filled(number: int, like: Tensor) -> Tensor:
    return torch.full((), float(number), device=like.device)


def _distance(features: Tensor, others: Tensor) -> Tensor:
    """The squared distances (P,) of features (P, F) once all have length 1."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    features, others = (F.normalize(x.to(dtype), dim=-1) for x in (features, others))
    return (features - others).square().sum(-1)


def _power(logits: Tensor, exponent: float) -> Tensor:
    """Return a power of the probabilities as a weight, through which no gradient flows."""
    return (exponent * F.logsigmoid(logits.detach())).exp()
