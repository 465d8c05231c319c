"""Drawing detections on their image."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..structures import Detections
from .fonts import font, legible

NUM_SHOWN = 4  # images of a batch in a training picture
_LONGEST = 640  # pixels of an image's longer side in a training picture, at most
# A training picture has all detections of at least this score, and at least so many.
_THRESHOLD = 0.3
_FEW = 3

Color = tuple[int, int, int]


def class_color(label: int) -> Color:
    """The colour of a class, bright enough for black text and for dark images.

    The hues of neighbouring classes are far apart.
    """
    hue = (0.97 + 0.381966 * label) % 1
    color = 255 * np.array(colorsys.hsv_to_rgb(hue, 0.85, 1.0))
    brightness = color @ (0.299, 0.587, 0.114)
    color += max(0, 130 - brightness) / (255 - brightness) * (255 - color)
    return tuple(color.round().astype(int).tolist())


def draw_detections(
    image: Image.Image | np.ndarray,
    boxes: ArrayLike,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    threshold: float = 0.3,
    gt_boxes: ArrayLike = (),
    least_side: int = 384,
    most_side: float = math.inf,
) -> Image.Image:
    """Draw boxes with their class and score, those of the best scores on top.

    Args:
        image: PIL image, or (h, w, 3) uint8.
        boxes: (K, 4) xyxy in pixels of ``image``.
        labels: (K,) class indices.
        scores: (K,), or None if the boxes have no scores; then all boxes are drawn.
        class_names: names by class index; by default the index is written.
        threshold: detections with a lower score are left out.
        gt_boxes: (T, 4) ground-truth boxes like ``boxes``, drawn dashed in black and white.
        least_side: an image is enlarged until its longer side has this length, so that text fits.
        most_side: an image is made smaller until its longer side has this length.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    picture = picture.convert("RGB")
    longest = max(picture.size)
    factor = min(max(longest, least_side), most_side) / longest
    if factor != 1:
        size = tuple(max(1, round(side * factor)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    unit = max(1, round(max(picture.size) / 600))  # line widths and text grow with the picture
    names = legible(tuple(class_names)) if class_names else None

    for box in np.asarray(gt_boxes, dtype=float).reshape(-1, 4) * factor:
        _dashed_rectangle(draw, box, width=unit, dash=5 * unit)
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4) * factor
    labels = np.asarray(labels, dtype=int)
    certainty = np.ones(len(boxes)) if scores is None else np.asarray(scores, dtype=float)
    shown = [i for i in np.argsort(certainty, kind="stable") if certainty[i] >= threshold]
    for i in shown:
        x1, y1, x2, y2 = _drawable(boxes[i])
        rim = (x1 - unit, y1 - unit, x2 + unit, y2 + unit)  # against a ground of the same colour
        draw.rectangle(rim, outline="black", width=unit)
        draw.rectangle((x1, y1, x2, y2), outline=class_color(labels[i]), width=3 * unit)
    taken: list[np.ndarray] = []
    for i in reversed(shown):
        text, file = (str(labels[i]), None) if names is None else names[labels[i]]
        if scores is not None:
            text += f" {certainty[i]:.2f}"
        style = font(file, 13 * unit)
        taken.append(_tag(draw, boxes[i], text, class_color(labels[i]), style, taken))
    return picture


def grid(images: Sequence[Image.Image], columns: int = 4, gap: int = 8) -> Image.Image:
    """The images, at least one, row by row on white, each with the room of the largest."""
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    width, height = (max(image.size[axis] for image in images) + gap for axis in (0, 1))
    whole = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        whole.paste(image, (column * width, row * height))
    return whole


def training_picture(
    images: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    detections: Sequence[Detections],
    *,
    image_format: str,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw images side by side, with their detections and, dashed, their ground truth.

    Args:
        images: (3, h, w) uint8 each.
        gt_boxes: (n, 4) xyxy in pixels of each image.
        detections: detections in pixels of each image.
        image_format: order of the channels, "RGB" or "BGR".
        class_names: names by class index; by default the index is written.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    pictures = []
    for image, boxes, found in zip(images, gt_boxes, detections, strict=True):
        pixels = (image if image_format == "RGB" else image.flip(0)).permute(1, 2, 0)
        shown = max(_FEW, int((found.scores >= _THRESHOLD).sum()))
        picture = draw_detections(
            pixels.cpu().numpy(),
            found.boxes[:shown].cpu(),
            found.labels[:shown].tolist(),
            found.scores[:shown].tolist(),
            class_names,
            threshold=0.0,
            gt_boxes=boxes.cpu(),
            most_side=_LONGEST,
        )
        pictures.append(picture)
    return np.asarray(grid(pictures, columns=len(pictures)))


def _drawable(box: np.ndarray) -> list[int]:
    """The first and last pixels inside a box, in order even if it is thinner than a pixel."""
    x1, y1 = np.floor(box[:2] + 0.5).astype(int).tolist()
    x2, y2 = (np.floor(box[2:] + 0.5).astype(int) - 1).tolist()
    return [x1, y1, max(x1, x2), max(y1, y2)]


def _dashed_rectangle(draw: ImageDraw.ImageDraw, box: np.ndarray, width: int, dash: int) -> None:
    x1, y1, x2, y2 = _drawable(box)
    draw.rectangle((x1, y1, x2, y2), outline="black", width=width)
    for x in range(x1, x2 + 1, 2 * dash):
        end = min(x + dash - 1, x2)
        draw.rectangle((x, y1, end, y1 + width - 1), fill="white")
        draw.rectangle((x, y2 - width + 1, end, y2), fill="white")
    for y in range(y1, y2 + 1, 2 * dash):
        end = min(y + dash - 1, y2)
        draw.rectangle((x1, y, x1 + width - 1, end), fill="white")
        draw.rectangle((x2 - width + 1, y, x2, end), fill="white")


def _tag(
    draw: ImageDraw.ImageDraw,
    box: np.ndarray,
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[np.ndarray],
) -> np.ndarray:
    """Write ``text`` on a ground of ``color``, beside the ``taken`` places if there is room.

    Returns its place, x1, y1, x2, y2.
    """
    _, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    size = np.array([right + 6, bottom - top + 6])
    x1, y1, x2, y2 = _drawable(box)
    width, height = size
    corners = [
        (x, y)
        for y in (y1 - height, y2 + 1, y1, y2 + 1 - height)  # above, below, inside
        for x in (x1, x2 + 1 - width)
    ]
    limit = (np.array(draw.im.size) - size).clip(min=0)
    places = [np.concatenate([c, c + size]) for c in np.clip(corners, 0, limit)]
    place = min(places, key=lambda place: sum(_common_area(place, other) for other in taken))
    draw.rectangle((place - (0, 0, 1, 1)).tolist(), fill=color)
    draw.text((place[0] + 3, place[1] + 3 - top), text, fill="black", font=font)
    return place


def _common_area(a: np.ndarray, b: np.ndarray) -> int:
    return int((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod())
