"""The detectors as meta-architectures of Detectron2, with Detectron2's dicts in and out."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..config import validate_model
from ..data.coco import count_classes
from ..modeling.detector import Detector, detector_parts, pad_images, stack_patches
from ..modeling.heads import detect
from ..modeling.parts import Backbone, BaseDetector
from ..modeling.tsp_fcos import TSPFCOS as TSPFCOSDetector
from ..structures import Detections, Size
from ..training import SetCriterion, Targets, TSPCriterion, build_criterion
from .backbone import build_backbone, strides_and_channels
from .datasets import register_unknown_datasets
from .solver import refuse_default_trainer, unread_keys, watched

logger = logging.getLogger(__name__)


class Detectron2Detector(BaseDetector):
    """The base of the meta-architectures, around any backbone of this project or of Detectron2.

    Their parameters have the names they have without Detectron2, on disk as in memory.
    """

    @configurable
    def __init__(
        self,
        *,
        criterion: SetCriterion | TSPCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        max_detections: int = 300,
        unread: Sequence[str] = (),
        **parts: Any,
    ):
        """
        Args:
            criterion: the training loss.
            pixel_mean, pixel_std: mean and standard deviation of the images' three channels, for
                pixels in 0..255.
            max_detections: the most that an image can have.
            unread: see :func:`~smca.d2.solver.unread_keys`. Whoever builds the optimizer from them
                empties it; otherwise the first step of SGD warns.
            parts: of the detector; its backbone may also be any of Detectron2's.
        """
        super().__init__(**parts)
        self.criterion = criterion
        self.max_detections = max_detections
        self.unread = tuple(unread)
        for name, numbers in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            per_channel = torch.tensor(list(numbers)).view(3, 1, 1)
            self.register_buffer(name, per_channel, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        cfg = cfg.clone()
        cfg.defrost()
        if cfg.MODEL.SMCA.NUM_CLASSES == 0:
            cfg.MODEL.SMCA.NUM_CLASSES, source = count_classes(cfg)
            logger.info("MODEL.SMCA.NUM_CLASSES: %d, as in %s", cfg.MODEL.SMCA.NUM_CLASSES, source)
        validate_model(cfg)
        unread = unread_keys(cfg)
        refuse_default_trainer(unread)
        register_unknown_datasets(cfg)
        backbone = build_backbone(cfg)
        return {
            **detector_parts(cfg, backbone, *strides_and_channels(backbone)),
            "criterion": build_criterion(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "unread": unread,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def has_unread_maps(self) -> bool:
        """Whether the backbone returns maps that no loss depends on."""
        return not set(strides_and_channels(self.backbone)[0]) <= set(self.in_features)

    def forward(self, batched_inputs: Sequence[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict for each image, with ``image`` (3, h, w) in 0..255. In training
                also ``instances`` with ``gt_boxes`` (xyxy, in pixels of ``image``) and
                ``gt_classes``, and to pre-train ``patches`` (M, 3, S, S) in 0..255; in evaluation
                optionally ``height`` and ``width``, the size that boxes are scaled to.

        Returns:
            in training the weighted losses, to be summed; in evaluation
            ``{"instances": Instances}`` for each image, with ``pred_boxes`` (not clipped to the
            image), ``scores`` and ``pred_classes``, best first.
        """
        images, sizes = self.preprocess(batched_inputs)
        if self.training:
            if self.unread:
                watched[self], self.unread = self.unread, ()
            instances = [image["instances"] for image in batched_inputs]
            targets = Targets.from_images(
                [image.gt_classes for image in instances],
                [image.gt_boxes.tensor for image in instances],
                sizes,
                images.device,
                stack_patches(
                    [image.get("patches") for image in batched_inputs],
                    mean=self.pixel_mean,
                    std=self.pixel_std,
                ),
            )
            return self.criterion(self.predict(images, sizes, targets), targets)
        output_sizes = [
            (image.get("height", h), image.get("width", w))
            for image, (h, w) in zip(batched_inputs, sizes, strict=True)
        ]
        detections = detect(
            self.predict(images, sizes),
            output_sizes,
            max_detections=self.max_detections,
            softmax=self.criterion.classification == "softmax",
        )
        return [
            {
                "instances": Instances(
                    size,
                    pred_boxes=Boxes(image.boxes),
                    scores=image.scores,
                    pred_classes=image.labels,
                )
            }
            for size, image in zip(output_sizes, detections, strict=True)
        ]

    def features(self, images: Tensor, sizes: Sequence[Size]) -> Mapping[str, Tensor]:
        if isinstance(self.backbone, Backbone):
            return super().features(images, sizes)
        return self.backbone(images)  # Detectron2's own backbones take no sizes.

    def preprocess(self, batched_inputs: Sequence[dict]) -> tuple[Tensor, list[Size]]:
        """Normalise and pad the images: (B, 3, H, W), and each image's (h, w)."""
        images, sizes = pad_images(
            [image["image"] for image in batched_inputs], mean=self.pixel_mean, std=self.pixel_std
        )
        if isinstance(self.backbone, Backbone):
            return images, sizes
        # Detectron2's bare Swin fails to tell its own.
        strides = strides_and_channels(self.backbone)[0]
        divisibility = getattr(self.backbone, "size_divisibility", max(strides.values()))
        constraints = self.backbone.padding_constraints
        if divisibility > 1 or constraints:
            images = ImageList.from_tensors(
                list(images), divisibility, padding_constraints=constraints
            ).tensor
        return images, sizes


@META_ARCH_REGISTRY.register()
class SMCA(Detectron2Detector, Detector):
    """SMCA, and the other detectors of its family."""


@META_ARCH_REGISTRY.register()
class TSPFCOS(Detectron2Detector, TSPFCOSDetector):
    """TSP-FCOS."""


def to_detections(outputs: Sequence[dict]) -> list[Detections]:
    """Return what a detector of Detectron2 has found in each image, on the CPU."""
    found = [output["instances"].to("cpu") for output in outputs]
    return [Detections(one.pred_boxes.tensor, one.scores, one.pred_classes) for one in found]
