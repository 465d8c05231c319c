"""The mapper from a dataset's record to a sample, with the paper's augmentation (section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes

from ..structures import Sample, Size
from .images import read_record

# The longest side before a crop, in pixels. An image of 1 x 4000 pixels whose short side becomes
# 600 would fill 4 GB.
LONGEST_BEFORE_CROP = 20_000

_FLIPS = {"horizontal": F.horizontal_flip, "vertical": F.vertical_flip, "none": None}


def resized_shape(height: int, width: int, short: int, longest: float) -> Size:
    """Return the (h, w) that makes the short side ``short``, but the long side at most ``longest``.

    It is rounded as in Detectron2's ``ResizeShortestEdge``.
    """
    scale = short / min(height, width)
    h, w = (short, scale * width) if height < width else (scale * height, short)
    if max(h, w) > longest:
        scale = longest / max(h, w)
        h, w = h * scale, w * scale
    return max(1, int(h + 0.5)), max(1, int(w + 0.5))


class DetrMapper:
    """Maps a record to a :class:`Sample`, with random augmentation drawn from torch's generator.

    It flips with probability 0.5, then with probability 0.5 resizes to one of ``sizes_before_crop``
    and crops, and finally resizes to one of ``sizes``.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int],
        max_size: int,
        size_range: bool = False,
        flip: str = "none",
        crop_sizes: tuple[int, int] | None = None,
        sizes_before_crop: Sequence[int] = (),
        image_format: str = "RGB",
    ):
        """
        Args:
            sizes: lengths of the short side in pixels, one of which is drawn; 0 keeps the image's.
            max_size: greatest length of the long side.
            size_range: ``sizes`` are the least and the greatest length, and any between is drawn.
            flip: "horizontal", "vertical" or "none".
            crop_sizes: least and greatest length of a crop's sides; None never crops.
            sizes_before_crop: like ``sizes``.
            image_format: order of the channels, "RGB" or "BGR".
        """
        self.sizes = range(sizes[0], sizes[1] + 1) if size_range else sizes
        self.max_size = max_size
        self.flip = _FLIPS[flip]
        self.crop_sizes = crop_sizes
        self.sizes_before_crop = sizes_before_crop
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> DetrMapper:
        inputs = cfg.INPUT
        if not is_train:
            return cls(
                sizes=(inputs.MIN_SIZE_TEST,),
                max_size=inputs.MAX_SIZE_TEST,
                image_format=inputs.FORMAT,
            )
        sizes = inputs.MIN_SIZE_TRAIN
        return cls(
            sizes=(sizes,) if isinstance(sizes, int) else sizes,
            max_size=inputs.MAX_SIZE_TRAIN,
            size_range=inputs.MIN_SIZE_TRAIN_SAMPLING == "range",
            flip=inputs.RANDOM_FLIP,
            crop_sizes=tuple(inputs.CROP.SIZE) if inputs.CROP.ENABLED else None,
            sizes_before_crop=inputs.CROP.MIN_SIZE_BEFORE,
            image_format=inputs.FORMAT,
        )

    def __call__(self, record: dict) -> Sample:
        """Return the sample of a record, without crowds, its boxes clipped to the image.

        Raises:
            OSError: see :func:`~smca.data.images.read_record`.
        """
        image = read_record(record)
        height, width = image.height, image.width
        annotations = [entry for entry in record["annotations"] if not entry["iscrowd"]]
        labels = torch.tensor([entry["category_id"] for entry in annotations], dtype=torch.int64)
        # Clipped in float64: the visible part of a box that reaches far outside stays exact.
        boxes = torch.tensor([entry["bbox"] for entry in annotations], dtype=torch.float64)
        boxes = box_convert(boxes.reshape(-1, 4), "xywh", "xyxy")
        boxes = clip_boxes_to_image(boxes, (height, width)).float()
        boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))

        image, boxes = self._augment([image, boxes])
        boxes = clip_boxes_to_image(boxes.as_subclass(Tensor), (image.height, image.width))
        kept = (boxes[:, 2:] - boxes[:, :2] > 1e-5).all(dim=1)
        return Sample(
            image=self._pixels(image),
            labels=labels[kept],
            boxes=boxes[kept],
            image_id=record["image_id"],
            file_name=record["file_name"],
            height=height,
            width=width,
        )

    def map_image(self, image: Image.Image) -> Tensor:
        """Map an RGB image that has no record: (3, h, w) uint8, as in a sample."""
        (image,) = self._augment([image])
        return self._pixels(image)

    def _pixels(self, image: Image.Image) -> Tensor:
        pixels = F.pil_to_tensor(image)
        return pixels.flip(0) if self.image_format == "BGR" else pixels

    def _augment(self, parts: Sequence[Any]) -> Sequence[Any]:
        """Augment an image and, if it has boxes, these in the same way."""
        if self.flip and torch.rand(()) < 0.5:
            parts = [self.flip(part) for part in parts]
        if self.crop_sizes and torch.rand(()) < 0.5:
            parts = _resize(parts, _choice(self.sizes_before_crop), LONGEST_BEFORE_CROP)
            parts = _crop(parts, *self.crop_sizes)
        return _resize(parts, _choice(self.sizes), self.max_size)


def _draw(low: int, high: int) -> int:
    """Draw an integer from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, ()))


def _choice(sizes: Sequence[int]) -> int:
    return sizes[_draw(0, len(sizes) - 1)] if len(sizes) > 1 else sizes[0]


def _resize(parts: Sequence[Any], short: int, longest: float) -> Sequence[Any]:
    if short == 0:
        return parts
    shape = list(resized_shape(parts[0].height, parts[0].width, short, longest))
    # On a PIL image this is Pillow's own filter on 8 bits, bit for bit what Detectron2 does.
    return [F.resize(part, shape) for part in parts]


def _crop(parts: Sequence[Any], least: int, most: int) -> Sequence[Any]:
    height, width = parts[0].height, parts[0].width
    h, w = (_draw(min(side, least), min(side, most)) for side in (height, width))
    place = _draw(0, height - h), _draw(0, width - w), h, w
    return [F.crop(part, *place) for part in parts]
