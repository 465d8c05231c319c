"""The mapper from a dataset's record to a sample, with the paper's augmentation (section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes

from ..structures import Sample, Size
from .images import read_record

# The longest side before a crop, in pixels. An image of 1 x 4000 pixels whose short side becomes
# 600 would fill 4 GB.
LONGEST_BEFORE_CROP = 20_000


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


class ResizeShortestEdge(v2.Transform):
    """Resizes the short side to one of ``sizes``, but the long side to at most ``max_size``.

    It rounds as Detectron2 does, which v2.RandomShortestSize does not. A size of 0 keeps the image.
    """

    def __init__(self, sizes: Sequence[int], max_size: int):
        super().__init__()
        self.sizes = sizes
        self.max_size = max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        # A single size needs no draw.
        short = self.sizes[_draw(0, len(self.sizes) - 1) if len(self.sizes) > 1 else 0]
        height, width = v2.query_size(flat_inputs)
        return {"shape": short and list(resized_shape(height, width, short, self.max_size))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        # On a PIL image this is Pillow's own filter on 8 bits, bit for bit what Detectron2 does.
        return F.resize(inpt, params["shape"]) if params["shape"] else inpt


class RandomSizeCrop(v2.Transform):
    """Crops a rectangle with sides from ``least`` to ``most`` pixels, or as long as the image's."""

    def __init__(self, least: int, most: int):
        super().__init__()
        self.least = least
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        h, w = (_draw(min(side, self.least), min(side, self.most)) for side in (height, width))
        return {"top": _draw(0, height - h), "left": _draw(0, width - w), "height": h, "width": w}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


def _draw(low: int, high: int) -> int:
    """Draw an integer from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, ()))


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[v2.Transform]:
    """Build the transforms of a config's ``INPUT``: flip, half of the time a crop, resize."""
    inputs = cfg.INPUT
    if not is_train:
        return [ResizeShortestEdge([inputs.MIN_SIZE_TEST], inputs.MAX_SIZE_TEST)]
    augmentations: list[v2.Transform] = []
    if inputs.RANDOM_FLIP != "none":
        horizontal = inputs.RANDOM_FLIP == "horizontal"
        augmentations.append(v2.RandomHorizontalFlip() if horizontal else v2.RandomVerticalFlip())
    if inputs.CROP.ENABLED:
        zoom = ResizeShortestEdge(inputs.CROP.MIN_SIZE_BEFORE, LONGEST_BEFORE_CROP)
        augmentations.append(v2.RandomApply([zoom, RandomSizeCrop(*inputs.CROP.SIZE)], p=0.5))
    sizes = inputs.MIN_SIZE_TRAIN
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    if inputs.MIN_SIZE_TRAIN_SAMPLING == "range":
        sizes = range(sizes[0], sizes[1] + 1)
    return [*augmentations, ResizeShortestEdge(sizes, inputs.MAX_SIZE_TRAIN)]


class DetrMapper:
    """Maps a record to a :class:`Sample`. Randomness comes from torch's generator.

    Its list ``augmentations`` may be changed until a loader has the mapper.
    """

    def __init__(
        self, *, augmentations: Iterable[Callable], image_format: str = "RGB", grey_bits: int = 0
    ):
        """
        Args:
            augmentations: torchvision's v2 transforms, run one after the other on a dict of
                ``image`` (PIL, RGB) and, for a record, ``boxes`` (BoundingBoxes) and ``labels``.
            image_format: order of the channels, "RGB" or "BGR".
            grey_bits: see :func:`~smca.data.images.upright_rgb`.
        """
        self.augmentations = list(augmentations)
        self.image_format = image_format
        self.grey_bits = grey_bits

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> DetrMapper:
        augmentations = build_augmentations(cfg, is_train)
        inputs = cfg.INPUT
        return cls(
            augmentations=augmentations, image_format=inputs.FORMAT, grey_bits=inputs.GREY_BITS
        )

    def __call__(self, record: dict) -> Sample:
        """Return the sample of a record, without crowds, its boxes clipped to the image.

        Raises:
            OSError: see :func:`~smca.data.images.read_record`.
        """
        image = read_record(record, self.grey_bits)
        height, width = image.height, image.width
        annotations = [entry for entry in record.get("annotations", ()) if not entry["iscrowd"]]
        labels = torch.tensor([entry["category_id"] for entry in annotations], dtype=torch.int64)
        # Clipped in float64: the visible part of a box that reaches far outside stays exact.
        boxes = torch.tensor([entry["bbox"] for entry in annotations], dtype=torch.float64)
        boxes = box_convert(boxes.reshape(-1, 4), "xywh", "xyxy")
        boxes = clip_boxes_to_image(boxes, (height, width)).float()
        boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))

        augmented = self._augment({"image": image, "boxes": boxes, "labels": labels})
        image, labels = augmented["image"], augmented["labels"]
        boxes = clip_boxes_to_image(augmented["boxes"].as_subclass(Tensor), image.shape[1:])
        kept = (boxes[:, 2:] - boxes[:, :2] > 1e-5).all(dim=1)
        return Sample(
            image=image,
            labels=labels[kept],
            boxes=boxes[kept],
            image_id=record["image_id"],
            file_name=record["file_name"],
            height=height,
            width=width,
        )

    def map_image(self, image: Image.Image) -> Tensor:
        """Map an RGB image that has no record: (3, h, w) uint8, as in a sample."""
        return self._augment({"image": image})["image"]

    def _augment(self, sample: dict[str, Any]) -> dict[str, Any]:
        for augment in self.augmentations:
            sample = augment(sample)
        return {**sample, "image": self._pixels(sample["image"])}

    def _pixels(self, image: Any) -> Tensor:
        # A transform may have made a tensor of the image, with fractions of 1.
        pixels = F.to_dtype(F.to_image(image), torch.uint8, scale=True).as_subclass(Tensor)
        return pixels.flip(0) if self.image_format == "BGR" else pixels
