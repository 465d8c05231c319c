"""The mapper from a dataset's record to Detectron2's model input, with the paper's augmentation
(section 4.1).
"""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.transforms.transform import Transform

from ..config import pretrains
from ..data.images import read_record
from ..data.mapper import LONGEST_BEFORE_CROP
from ..data.patches import PatchMapper


class Resize(T.ResizeShortestEdge):
    """Detectron2's, but never to a side of 0 pixels, which 1x4000 at most 1333 long would have."""

    def get_transform(self, image: np.ndarray) -> Transform:
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform):
            resize.new_h, resize.new_w = max(1, resize.new_h), max(1, resize.new_w)
        return resize


class DetrDatasetMapper:
    """Maps a record to Detectron2's model input. Randomness comes from NumPy's generator."""

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: list[T.Augmentation],
        image_format: str = "RGB",
        grey_bits: int = 0,
    ):
        """
        Args:
            is_train: also map the annotations.
            augmentations: run one after the other.
            image_format: order of the channels, "RGB" or "BGR".
            grey_bits: see :func:`~smca.data.images.upright_rgb`.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.grey_bits = grey_bits

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "grey_bits": cfg.INPUT.GREY_BITS,
        }

    def __call__(self, record: dict) -> dict:
        """
        Args:
            record: Detectron2's standard dict, which is not changed.

        Returns:
            the record with ``image`` (3, h, w) uint8 and without ``annotations``; in training with
            ``instances``, which are all annotations but crowds, clipped to the image.

        Raises:
            OSError: see :func:`~smca.data.images.read_record`.
        """
        image = np.array(read_record(record, self.grey_bits))
        height, width = image.shape[:2]
        sample = {key: value for key, value in record.items() if key != "annotations"}
        sample |= {"height": height, "width": width}
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = augmented.image
        # Copied: NumPy calls a flipped image one pixel wide contiguous, despite negative strides.
        sample["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        if self.is_train:
            annotations = [
                utils.transform_instance_annotations(
                    _visible(entry, height, width), transforms, image.shape[:2]
                )
                for entry in record.get("annotations", ())
                if not entry.get("iscrowd", 0)
            ]
            instances = utils.annotations_to_instances(annotations, image.shape[:2])
            sample["instances"] = utils.filter_empty_instances(instances)
        return sample


class PatchDatasetMapper:
    """Maps a record to Detectron2's model input to pre-train with, by a :class:`PatchMapper`."""

    def __init__(self, mapper: PatchMapper):
        self.mapper = mapper

    def __call__(self, record: dict) -> dict:
        """
        Returns:
            the record with ``image`` (3, h, w) uint8, ``patches`` (M, 3, S, S) uint8, and
            ``instances``, the places of the patches.

        Raises:
            OSError: see :class:`~smca.data.patches.PatchMapper`.
        """
        sample = self.mapper(record)
        size = sample.image.shape[1:]
        return {
            **record,
            "image": sample.image,
            "height": sample.height,
            "width": sample.width,
            "patches": sample.patches,
            "instances": Instances(size, gt_boxes=Boxes(sample.boxes), gt_classes=sample.labels),
        }


def build_training_mapper(cfg: CfgNode) -> DetrDatasetMapper | PatchDatasetMapper:
    """Return the mapper of training records."""
    if pretrains(cfg):
        return PatchDatasetMapper(PatchMapper.from_config(cfg))
    return DetrDatasetMapper(cfg, is_train=True)


def _visible(entry: dict, height: int, width: int) -> dict:
    """Return an annotation's class and the part of its box that is in the image."""
    # Clipped in float64: the visible part of a box that reaches far outside stays exact.
    box = np.array([entry["bbox"]], dtype=np.float64)
    box = BoxMode.convert(box, entry["bbox_mode"], BoxMode.XYXY_ABS)[0]
    return {
        "bbox": box.clip(0, (width, height, width, height)),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": entry["category_id"],
    }


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build the transforms of a config's ``INPUT``: flip, half of the time a crop, resize.

    A size of 0 keeps the image's own.
    """
    inputs = cfg.INPUT
    if not is_train:
        return [Resize(inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST, "choice")]
    augmentations = []
    if inputs.RANDOM_FLIP != "none":
        horizontal = inputs.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    if inputs.CROP.ENABLED:
        zoom = Resize(inputs.CROP.MIN_SIZE_BEFORE, LONGEST_BEFORE_CROP, "choice")
        crop = T.RandomCrop(inputs.CROP.TYPE, inputs.CROP.SIZE)
        augmentations.append(T.RandomApply(T.AugmentationList([zoom, crop]), prob=0.5))
    augmentations.append(
        Resize(inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TRAIN_SAMPLING)
    )
    return augmentations
