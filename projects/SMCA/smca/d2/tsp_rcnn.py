"""TSP-RCNN's heads for Detectron2 (Sun et al., arXiv 2011.10881).

The proposals of an image see each other in an encoder. In training an object is matched to one of
the proposals that overlap it, and all others are background to the classifier.

Shapes: R proposals of all images, M objects of all images, C channels, K classes.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..errors import ConfigError
from ..modeling.layers import MLP
from ..structures import Size
from ..training.matcher import generalized_iou, restricted_matches
from .solver import refuse_default_trainer, unread_keys
from .tsp_box_head import TSPBoxHead

# The focal factor of background is this times (1 - p of background) to the power of gamma.
_BACKGROUND_FOCUS = 2.0


class TSPOutputLayers(FastRCNNOutputLayers):
    """Classes and boxes of encoded proposals, with the losses of the set of proposals."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        class_cost: float = 1.0,
        giou_cost: float = 2.0,
        class_weight: float = 1.0,
        background_weight: float = 0.1,
        focal_gamma: float = 2.0,
        giou_weight: float = 2.0,
        **options,
    ):
        """
        Args:
            input_shape: its channels are C.
            class_cost, giou_cost: weights of the matching's two costs.
            class_weight: of the classification loss.
            background_weight: weight of a proposal that is not matched.
            focal_gamma: the larger, the less easy background counts.
            giou_weight: of 1 - GIoU beside the L1 distance of the deltas.
            options: see Detectron2's FastRCNNOutputLayers; the key ``loss_box_reg`` of its
                ``loss_weight`` weights both parts of the box loss.
        """
        super().__init__(input_shape, **options)
        dim = input_shape.channels
        self.bbox_pred = MLP(dim, dim, self.bbox_pred.out_features, 3)
        nn.init.normal_(self.bbox_pred[-1].weight, std=0.001)
        nn.init.zeros_(self.bbox_pred[-1].bias)
        self.class_cost, self.giou_cost = class_cost, giou_cost
        self.class_weight, self.giou_weight = class_weight, giou_weight
        self.background_weight = background_weight
        self.focal_gamma = focal_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            **super().from_config(cfg, input_shape),
            "use_sigmoid_ce": False,
            "use_fed_loss": False,
            "class_cost": smca.MATCHER.CLASS_COST,
            "giou_cost": smca.MATCHER.GIOU_COST,
            "class_weight": smca.LOSS.CLASS_WEIGHT,
            "background_weight": smca.LOSS.NO_OBJECT_WEIGHT,
            "focal_gamma": smca.LOSS.FOCAL_GAMMA,
            "giou_weight": smca.LOSS.GIOU_WEIGHT,
        }

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances], num_objects: int
    ) -> dict[str, Tensor]:
        """Return the weighted losses of all images together.

        Args:
            predictions: logits (R, K + 1), of which the last is background, and deltas (R, 4K).
            proposals: of each image, from :meth:`TSPROIHeads.label_and_sample_proposals`.
            num_objects: M.

        Returns:
            ``loss_cls``: each object's match has its class, all other proposals are background; it
            is 0 if nothing is matched. ``loss_box_reg``: of all proposals that have an object.
        """
        logits, deltas = (x.float() for x in predictions)
        boxes = torch.cat([image.proposal_boxes.tensor for image in proposals])
        wanted = torch.cat([image.gt_boxes.tensor for image in proposals])
        classes = torch.cat([image.gt_classes for image in proposals])
        objects = torch.cat([image.gt_objects for image in proposals])
        has_object = classes < self.num_classes
        rows = torch.arange(len(boxes), device=boxes.device)
        deltas = deltas.unflatten(1, (-1, 4))  # (R, K, 4), or (R, 1, 4) if all classes share them
        deltas = deltas[rows, classes.clamp(max=deltas.shape[1] - 1)]
        decoded = self.box2box_transform.apply_deltas(deltas, boxes)
        giou = generalized_iou(*(box_convert(b, "xyxy", "cxcywh") for b in (decoded, wanted)))
        l1 = (deltas - self.box2box_transform.get_deltas(boxes, wanted)).abs().sum(dim=1)
        each = torch.where(has_object, l1 + self.giou_weight * (1 - giou), 0.0)
        box_loss = each.sum() / max(len(boxes), 1)

        with torch.no_grad():
            probability = logits.softmax(dim=1)
            p = probability[rows, classes.clamp(max=self.num_classes - 1)]
            cost = self.giou_cost * (1 - giou) - self.class_cost * p
            objects = objects.where(has_object, -1)
            matched = restricted_matches(cost[None], objects[None], num_objects)[0]
            weight = torch.where(matched, 1.0, self.background_weight)
            focus = _BACKGROUND_FOCUS * (1 - probability[:, -1]) ** self.focal_gamma
            focus = torch.where(matched, 1.0, focus)
        labels = classes.where(matched, self.num_classes)
        entropy = F.cross_entropy(logits, labels, reduction="none")
        class_loss = (weight * focus * entropy).sum() / (weight.sum() + 1e-6) * matched.any()
        return {
            "loss_cls": self.class_weight * class_loss,
            "loss_box_reg": self.loss_weight["loss_box_reg"] * box_loss,
        }


def noisy_objects(objects: Boxes, size: Size) -> Boxes:
    """Shift each object by up to a tenth of its sides, and scale each side by 0.8 to 1.25.

    They are clipped to the image, of ``size`` (h, w) pixels; those that are then empty are left
    out.
    """
    centers, sides = box_convert(objects.tensor, "xyxy", "cxcywh").chunk(2, dim=1)
    shift, power = torch.rand(2, *sides.shape, device=sides.device) * 2 - 1
    noisy = torch.cat((centers + 0.1 * shift * sides, sides * 0.8**power), dim=1)
    noisy = Boxes(box_convert(noisy, "cxcywh", "xyxy"))
    noisy.clip(size)
    return noisy[noisy.nonempty()]


@ROI_HEADS_REGISTRY.register()
class TSPROIHeads(ROIHeads):
    """Pools the proposals, encodes them together, and predicts their classes and boxes."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_head: TSPBoxHead,
        box_predictor: TSPOutputLayers,
        least_kept: float = 0.7,
        **options,
    ):
        """
        Args:
            in_features: the pyramid's levels that are pooled.
            box_pooler, box_head, box_predictor: the parts, in their order.
            least_kept: least part of an image's sampled proposals that is kept in training.
            options: see Detectron2's ROIHeads.
        """
        super().__init__(**options)
        self.in_features = in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.least_kept = least_kept

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        refuse_default_trainer(unread_keys(cfg))
        if cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT:
            raise ConfigError(
                "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT is True; it must be False with TSPROIHeads, "
                "which adds noisy objects, and only where no proposal has an object"
            )
        head = cfg.MODEL.ROI_BOX_HEAD
        names, side = cfg.MODEL.ROI_HEADS.IN_FEATURES, head.POOLER_RESOLUTION
        pooled = ShapeSpec(channels=input_shape[names[0]].channels, height=side, width=side)
        return {
            **super().from_config(cfg),
            "in_features": names,
            "box_pooler": ROIPooler(
                output_size=side,
                scales=[1.0 / input_shape[name].stride for name in names],
                sampling_ratio=head.POOLER_SAMPLING_RATIO,
                pooler_type=head.POOLER_TYPE,
            ),
            "box_head": TSPBoxHead(**TSPBoxHead.from_config(cfg, pooled)),
            "box_predictor": TSPOutputLayers(cfg, ShapeSpec(channels=cfg.MODEL.SMCA.HIDDEN_DIM)),
            "least_kept": cfg.MODEL.SMCA.TSP.LEAST_KEPT,
        }

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        proposals: Sequence[Instances],
        targets: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return the sampled proposals and the losses in training, else detections and no loss.

        Detections are clipped to their image, suppressed class by class (MODEL.ROI_HEADS) and the
        best first. ``images`` is not read.
        """
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, targets)
        boxes = [image.proposal_boxes for image in proposals]
        pooled = self.box_pooler([features[name] for name in self.in_features], boxes)
        sizes = [image.image_size for image in proposals]
        hidden = self.box_head(pooled, [image.tensor for image in boxes], sizes)
        predictions = self.box_predictor(hidden)
        if self.training:
            return proposals, self.box_predictor.losses(
                predictions, proposals, num_objects=sum(map(len, targets))
            )
        detections, _ = self.box_predictor.inference(predictions, proposals)
        return detections, {}

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: Sequence[Instances], targets: Sequence[Instances]
    ) -> list[Instances]:
        """Give each proposal the object that it overlaps most, or none, and sample proposals.

        Where no proposal of an image has an object, :func:`noisy_objects` join the proposals. Of
        what Detectron2's sampler then chooses, a random part is kept, drawn for each image from
        ``least_kept`` to 1.

        Returns:
            of each image the proposals, with ``gt_classes`` (K: no object), ``gt_boxes`` and
            ``gt_objects``, the object's index in the batch; the latter two mean nothing without an
            object.
        """
        candidates, numbered, first = [], [], 0
        for image, objects in zip(proposals, targets, strict=True):
            boxes = image.proposal_boxes
            _, labels = self.proposal_matcher(pairwise_iou(objects.gt_boxes, boxes))
            if len(objects) and not (labels == 1).any():
                boxes = Boxes.cat([boxes, noisy_objects(objects.gt_boxes, image.image_size)])
            candidates.append(Instances(image.image_size, proposal_boxes=boxes))
            indices = torch.arange(first, first + len(objects), device=boxes.device)
            numbered.append(
                Instances(
                    objects.image_size,
                    gt_boxes=objects.gt_boxes,
                    gt_classes=objects.gt_classes,
                    gt_objects=indices,
                )
            )
            first += len(objects)
        sampled = super().label_and_sample_proposals(candidates, numbered)
        for image in sampled:
            if not image.has("gt_boxes"):
                image.gt_boxes = image.proposal_boxes
                image.gt_objects = torch.zeros_like(image.gt_classes)
        return [self.drop(image) for image in sampled]

    def drop(self, proposals: Instances) -> Instances:
        """Keep a random part of an image's proposals, at least one of them."""
        part = self.least_kept + (1 - self.least_kept) * torch.rand(()).item()
        order = torch.randperm(len(proposals), device=proposals.proposal_boxes.device)
        return proposals[order[: math.ceil(part * len(proposals))]]
