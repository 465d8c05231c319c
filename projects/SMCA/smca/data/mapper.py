"""From a dataset's record to a sample: reading, and the paper's augmentation (section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes

from ..structures import Sample
from .dataset import LONGEST_BEFORE_CROP, read_rgb


def resized_shape(height: int, width: int, short: int, longest: float) -> tuple[int, int]:
    """The (h, w) with the short side at ``short``, or less where the long one is at ``longest``.

    Rounded as Detectron2's ``ResizeShortestEdge`` does.
    """
    scale = short / min(height, width)
    h, w = (short, scale * width) if height < width else (scale * height, short)
    if max(h, w) > longest:
        scale = longest / max(h, w)
        h, w = h * scale, w * scale
    return max(1, int(h + 0.5)), max(1, int(w + 0.5))


class NativeMapper:
    """Maps a record to a :class:`Sample`, with random augmentation drawn from torch's generator.

    Flip with probability .5; then with probability .5, or always without ``crop_sizes``, resize;
    else resize to one of ``sizes_before_crop``, crop, and resize.
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
            sizes: lengths of the short side in pixels, one of which is drawn; 0 is the image's own.
            max_size: the long side is at most so long.
            size_range: ``sizes`` are the least and the most, and anything between is drawn.
            flip: "horizontal", "vertical" or "none".
            crop_sizes: least and most length of a crop's sides; None for no crops.
            sizes_before_crop: as ``sizes``.
            image_format: order of the channels, "RGB" or "BGR".
        """
        self.sizes = range(sizes[0], sizes[1] + 1) if size_range else sizes
        self.max_size = max_size
        self.flip = {
            "horizontal": F.horizontal_flip,
            "vertical": F.vertical_flip,
            "none": None,
        }[flip]
        self.crop_sizes = crop_sizes
        self.sizes_before_crop = sizes_before_crop
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> NativeMapper:
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
        """
        Boxes are clipped to the image, those outside it left out, and so are crowds.

        Raises:
            OSError: the file's image is not of the size that its annotation says.
        """
        image = read_rgb(record["file_name"])
        height, width = record["height"], record["width"]
        if image.size != (width, height):
            # Boxes of another image size are worth nothing; one such file stops no training.
            raise OSError(
                f"{record['file_name']} is {image.width}x{image.height} pixels, its annotation "
                f"says {width}x{height}; correct 'width' and 'height' in the annotation file"
            )
        annotations = [entry for entry in record["annotations"] if not entry["iscrowd"]]
        labels = torch.tensor([entry["category_id"] for entry in annotations], dtype=torch.int64)
        # In float64: of a box that reaches far beyond, the part within stays exact.
        boxes = torch.tensor([entry["bbox"] for entry in annotations], dtype=torch.float64)
        boxes = box_convert(boxes.reshape(-1, 4), "xywh", "xyxy")
        boxes = clip_boxes_to_image(boxes, (height, width)).float()
        boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))

        image, boxes = self._augment(image, boxes)
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
        """An RGB image without a record, mapped as one with: (3, h, w) uint8 as in a sample."""
        size = (image.height, image.width)
        nothing = BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size)
        image, _ = self._augment(image, nothing)
        return self._pixels(image)

    def _pixels(self, image: Image.Image) -> Tensor:
        pixels = F.pil_to_tensor(image)
        return pixels.flip(0) if self.image_format == "BGR" else pixels

    def _augment(
        self, image: Image.Image, boxes: BoundingBoxes
    ) -> tuple[Image.Image, BoundingBoxes]:
        if self.flip and _coin():
            image, boxes = self.flip(image), self.flip(boxes)
        if self.crop_sizes and _coin():
            image, boxes = _resize(
                image, boxes, _choice(self.sizes_before_crop), LONGEST_BEFORE_CROP
            )
            image, boxes = _crop(image, boxes, *self.crop_sizes)
        return _resize(image, boxes, _choice(self.sizes), self.max_size)


def _coin() -> bool:
    return bool(torch.rand(()) < 0.5)


def _draw(low: int, high: int) -> int:
    """An integer from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, ()))


def _choice(sizes: Sequence[int]) -> int:
    return sizes[_draw(0, len(sizes) - 1)] if len(sizes) > 1 else sizes[0]


def _resize(
    image: Image.Image, boxes: BoundingBoxes, short: int, longest: float
) -> tuple[Image.Image, BoundingBoxes]:
    if short == 0:
        return image, boxes
    shape = list(resized_shape(image.height, image.width, short, longest))
    # Pillow's own filter, on 8 bits: what Detectron2 does, to the last bit.
    return F.resize(image, shape), F.resize(boxes, shape)


def _crop(
    image: Image.Image, boxes: BoundingBoxes, least: int, most: int
) -> tuple[Image.Image, BoundingBoxes]:
    h, w = (_draw(min(side, least), min(side, most)) for side in (image.height, image.width))
    place = _draw(0, image.height - h), _draw(0, image.width - w), h, w
    return F.crop(image, *place), F.crop(boxes, *place)
