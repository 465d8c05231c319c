"""From a dataset's record to what the model takes, with the paper's augmentation (section 3)."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from fvcore.transforms.transform import Transform

from ..data.dataset import LONGEST_BEFORE_CROP, read_rgb


class Resize(T.ResizeShortestEdge):
    """Detectron2's, but never to a side of no pixels, as 1x4000 at most 1333 long would have."""

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
    ):
        """
        Args:
            is_train: also map the annotations.
            augmentations: run one after the other.
            image_format: order of the channels, "RGB" or "BGR".
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, record: dict) -> dict:
        """
        Args:
            record: Detectron2's standard dict, of which nothing is changed.

        Returns:
            the record with ``image`` (3, h, w) uint8; in training with ``instances`` of all
            annotations but crowds, clipped to the image, and no ``annotations``.

        Raises:
            OSError: a file that cannot be read, or that holds an image of another size than the
                record says.
        """
        image = np.array(read_rgb(record["file_name"]))
        sample = {key: value for key, value in record.items() if key != "annotations"}
        try:
            utils.check_image_size(sample, image)
        except utils.SizeMismatchError as error:
            # Boxes of another image size are worth nothing; one such file stops no training.
            raise OSError(str(error)) from error
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = augmented.image
        # A copy: of a flipped image one pixel wide, NumPy calls even negative strides contiguous.
        sample["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        if self.is_train:
            annotations = [
                utils.transform_instance_annotations(
                    _visible(entry, sample["height"], sample["width"]),
                    transforms,
                    image.shape[:2],
                )
                for entry in record.get("annotations", ())
                if not entry.get("iscrowd", 0)
            ]
            instances = utils.annotations_to_instances(annotations, image.shape[:2])
            sample["instances"] = utils.filter_empty_instances(instances)
        return sample


def _visible(entry: dict, height: int, width: int) -> dict:
    """An annotation's class, and of its box the part that is in the image."""
    # In float64: of a box that reaches far beyond, the part within stays exact.
    box = np.array([entry["bbox"]], dtype=np.float64)
    box = BoxMode.convert(box, entry["bbox_mode"], BoxMode.XYXY_ABS)[0]
    return {
        "bbox": box.clip(0, (width, height, width, height)),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": entry["category_id"],
    }


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The transforms of a config's ``INPUT``: flip, half of the time a crop, resize.

    A size of 0 is the image's own.
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
