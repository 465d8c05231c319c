"""From a dataset's record to what the model takes, with the paper's augmentation (section 3)."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from ..data.dataset import read_rgb


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
            OSError or another of ``smca.data.dataset.UNREADABLE``: a file that cannot be read, or
                that holds an image of another size than the record says.
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
        sample["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train:
            annotations = [
                utils.transform_instance_annotations(
                    {key: entry[key] for key in ("bbox", "bbox_mode", "category_id")},
                    transforms,
                    image.shape[:2],
                )
                for entry in record.get("annotations", ())
                if not entry.get("iscrowd", 0)
            ]
            instances = utils.annotations_to_instances(annotations, image.shape[:2])
            sample["instances"] = utils.filter_empty_instances(instances)
        return sample


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The transforms of a config's ``INPUT``: flip, half of the time a crop, resize.

    A size of 0 is the image's own.
    """
    inputs = cfg.INPUT
    if not is_train:
        return [T.ResizeShortestEdge(inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST, "choice")]
    augmentations = []
    if inputs.RANDOM_FLIP != "none":
        horizontal = inputs.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    if inputs.CROP.ENABLED:
        zoom = T.ResizeShortestEdge(inputs.CROP.MIN_SIZE_BEFORE, sample_style="choice")
        crop = T.RandomCrop(inputs.CROP.TYPE, inputs.CROP.SIZE)
        augmentations.append(T.RandomApply(T.AugmentationList([zoom, crop]), prob=0.5))
    augmentations.append(
        T.ResizeShortestEdge(
            inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TRAIN_SAMPLING
        )
    )
    return augmentations
