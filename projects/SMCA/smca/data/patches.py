"""The data of UP-DETR's pre-training (arXiv 2011.09094): images, and random patches of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence

import torch
from fvcore.common.config import CfgNode
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes

from ..errors import DatasetError
from ..structures import Sample
from .coco import dataset_files
from .images import image_files, read_rgb
from .mapper import DetrMapper, build_augmentations

logger = logging.getLogger(__name__)

# The least side of a patch in pixels; a patch is also so much shorter than its image.
_LEAST = 8
# The class of patches. In the released files class 0 is unused.
PATCH_CLASS = 1


def dataset_images(cfg: CfgNode, name: str) -> list[str]:
    """Return the image files of a dataset: all in its folder, whatever its annotations say.

    Raises:
        DatasetError: the folder does not exist, or there are no images in it.
    """
    folder = os.path.abspath(dataset_files(cfg, name)[1])
    files = list(image_files(folder))
    if not files:
        fault = "has no images in it" if os.path.isdir(folder) else "does not exist"
        raise DatasetError(
            f"dataset {name!r}: the folder {folder} {fault}; name a folder of images in "
            f"DATASETS.COCO_FORMAT, as [[{name!r}, '', 'FOLDER']]"
        )
    logger.info("%s: %d images in %s", name, len(files), folder)
    return files


def image_records(
    cfg: CfgNode, images: Callable[[CfgNode, str], list[str]] = dataset_images
) -> list[dict]:
    """Return a record of each image of DATASETS.TRAIN, with ``file_name`` and ``image_id``.

    Args:
        images: returns the image files of a dataset.

    Raises:
        DatasetError: see :func:`dataset_images`; or DATASETS.TRAIN is empty.
    """
    files = [file for name in cfg.DATASETS.TRAIN for file in images(cfg, name)]
    if not files:
        raise DatasetError("DATASETS.TRAIN is empty; name folders of images to pre-train with")
    return [{"file_name": file, "image_id": number} for number, file in enumerate(files)]


class PatchMapper(DetrMapper):
    """Maps a record to a :class:`Sample` whose objects are random patches of the image."""

    def __init__(
        self,
        *,
        augmentations: Iterable[Callable],
        num_patches: int = 10,
        patch_size: int = 128,
        image_format: str = "RGB",
        grey_bits: int = 0,
    ):
        """
        Args:
            augmentations, image_format, grey_bits: see :class:`DetrMapper`.
            num_patches: M, of each image.
            patch_size: S, sides that patches are resized to, whatever their shape, in pixels.
        """
        super().__init__(
            augmentations=augmentations, image_format=image_format, grey_bits=grey_bits
        )
        self.num_patches = num_patches
        self.patch_size = patch_size
        self.patch_augmentations = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.Lambda(_blur)], p=0.5),
            ]
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> PatchMapper:
        up_detr, inputs = cfg.MODEL.SMCA.UP_DETR, cfg.INPUT
        return cls(
            augmentations=build_augmentations(cfg, is_train),
            num_patches=up_detr.NUM_PATCHES,
            patch_size=up_detr.PATCH_SIZE,
            image_format=inputs.FORMAT,
            grey_bits=inputs.GREY_BITS,
        )

    def __call__(self, record: dict) -> Sample:
        """Return the image and its patches, which are cut before the image is resized.

        Raises:
            OSError: the image cannot be read, or is too small to have patches.
        """
        image = read_rgb(record["file_name"], self.grey_bits)
        boxes = random_boxes(image.size, self.num_patches)
        patches = [self._patch(image.crop(tuple(box))) for box in boxes.tolist()]
        augmented = self._augment(
            {
                "image": image,
                "boxes": BoundingBoxes(
                    boxes.float(), format="XYXY", canvas_size=(image.height, image.width)
                ),
            }
        )
        return Sample(
            image=augmented["image"],
            labels=torch.full((self.num_patches,), PATCH_CLASS),
            boxes=augmented["boxes"].as_subclass(Tensor),
            image_id=record["image_id"],
            file_name=record["file_name"],
            height=image.height,
            width=image.width,
            patches=torch.stack(patches),
        )

    def _patch(self, patch: Image.Image) -> Tensor:
        patch = F.resize(patch, [self.patch_size, self.patch_size])
        return self._pixels(self.patch_augmentations(patch))


def _blur(patch: Image.Image) -> Image.Image:
    return patch.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def random_boxes(size: Sequence[int], number: int) -> Tensor:
    """Draw boxes (number, 4), xyxy in whole pixels, in an image of this width and height.

    Sides are uniform between 8 pixels and the image's less 8, and so are places.

    Raises:
        OSError: a side of the image is at most 16 pixels long.
    """
    if min(size) <= 2 * _LEAST:
        raise OSError(
            f"it has {size[0]}x{size[1]} pixels, and patches need sides of more than {2 * _LEAST}"
        )
    limits = torch.tensor(size)
    sides = _LEAST + (torch.rand(number, 2) * (limits - 2 * _LEAST + 1)).long()
    corners = (torch.rand(number, 2) * (limits - sides)).long()
    return torch.cat([corners, corners + sides], dim=1)
