"""Crowded scenes of textured shapes, whose sizes and counts are distributed like COCO's.

A scene stands for a quarter of a COCO image, half as wide and half as high, as a random crop shows
it:

- A side (the square root of a box's area) is log-normal with COCO's published shares: 41 % below
  32 pixels and 76 % below 96, in images of 528 pixels (the mean of the square root of their
  area). Hence a sigma of 1.2 and a median of 0.078 of the image, 0.156 of a quarter. Sides below
  ``MIN_SIDE`` pixels or above ``MAX_SHARE`` of the scene are drawn again.
- The number of objects is geometric, as COCO's nearly is, up to ``MAX_OBJECTS``, with a mean of 4.3
  (COCO's whole images have 7.3). One scene in a hundred is empty, as in COCO.

Outline, fill and hue tell a class. Stripes are grey, and all else is random.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smca.data.shapes.dataset import Drawing, write_drawings
from smca.data.shapes.drawing import SHAPES, draw_background, paint_shapes

MIN_SIDE = 6
MAX_SHARE = 0.9
MAX_OBJECTS = 20
PLAIN_AND_STRIPED = tuple(name for name in SHAPES if not name.startswith(("hollow", "quartered")))

_MEDIAN, _SIGMA = 0.156, 1.2  # of the scene's side, and of the logarithm
_MEAN_OBJECTS = 4.6  # 4.3 of them find a place and stay visible
_EMPTY_IMAGES = 0.01
_MAX_OVERLAP = 0.75  # of the smaller of two boxes
_MIN_VISIBLE = 0.25  # of a shape: others cover up the rest


def write_scenes(
    root: Path,
    *,
    image_size: int,
    names: Sequence[str] = PLAIN_AND_STRIPED,
    num_train: int = 8000,
    num_val: int = 400,
) -> None:
    """Write ``root/{train,val}/*.png`` and ``root/annotations/{train,val}.json``.

    A folder that was written with the same arguments is reused.

    Args:
        root: the data set's folder.
        image_size: side of the square images, in pixels.
        names: the classes, of ``SHAPES``.
        num_train, num_val: images of each split.

    Raises:
        DatasetError: ``root`` holds something else.
    """
    write_drawings(
        root,
        lambda rng: draw_scene(rng, image_size, names),
        names=names,
        counts={"train": num_train, "val": num_val},
        arguments={"scenes": 1, "image_size": image_size, "seed": 0},
    )


def draw_scene(rng: np.random.Generator, image_size: int, names: Sequence[str]) -> Drawing:
    """Return a picture, and name and box of each shape. A box encloses what is visible."""
    canvas = draw_background(rng, image_size) + _texture(rng, (image_size, image_size))
    canvas = canvas.clip(0, 255)
    if rng.random() < _EMPTY_IMAGES:
        return canvas, []
    count = min(rng.geometric(1 / _MEAN_OBJECTS), MAX_OBJECTS)
    shapes = paint_shapes(
        rng,
        canvas,
        names=names,
        sides=_sides(rng, count, image_size),
        max_overlap=_MAX_OVERLAP,
        min_visible=_MIN_VISIBLE,
        colors=(
            lambda name: _color(rng, (names.index(name) + rng.uniform(-0.5, 0.5)) / len(names)),
            lambda name: np.full(3, rng.uniform(0, 255)),
        ),
        texture=lambda shape: _texture(rng, shape),
    )
    return canvas, shapes


def _sides(rng: np.random.Generator, count: int, image_size: int) -> np.ndarray:
    sides = np.zeros(count)
    while (wrong := (sides < MIN_SIDE) | (sides > MAX_SHARE * image_size)).any():
        sides[wrong] = image_size * _MEDIAN * np.exp(_SIGMA * rng.standard_normal(wrong.sum()))
    return sides


def _color(rng: np.random.Generator, hue: float) -> np.ndarray:
    """Return a colour of this hue, (3,) in 0..255."""
    saturation, brightness = rng.uniform(0.4, 1), rng.uniform(0.2, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, brightness))


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return waves of two random directions and lengths, (h, w, 1), to add to colours."""
    y, x = np.indices(shape, dtype=np.float32)
    waves = np.zeros(shape, np.float32)
    for _ in range(2):
        angle, length = rng.uniform(0, np.pi), rng.uniform(3, 24)
        phase = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length
        waves += rng.uniform(0, 12) * np.sin(phase + rng.uniform(0, 2 * np.pi))
    return waves[..., None]
