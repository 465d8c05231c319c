"""Crowded scenes of textured shapes, whose sizes and counts are distributed like COCO's.

- A side (the square root of a box's area) is log-normal with COCO's published shares: 41 % below
  32 pixels and 76 % below 96, in images of 528 pixels (the mean of the square root of their
  area). The shares give a median of 0.078 of the image and a sigma of 1.2. Sides below
  ``MIN_SIDE`` pixels or above ``MAX_SHARE`` of the image are drawn again.
- The number of objects is geometric with COCO's mean, 7.3, up to ``MAX_OBJECTS``. One image in a
  hundred is empty, as in COCO.
"""

import numpy as np

from smca.data.shapes.drawing import SHAPES, draw_background, paint_shapes

MIN_SIDE = 6
MAX_SHARE = 0.9
MAX_OBJECTS = 30
# Only their outline and fill tell the classes apart, as everything else is random.
NAMES = tuple(name for name in SHAPES if not name.startswith(("hollow", "quartered")))

_MEDIAN, _SIGMA = 0.078, 1.2
_MEAN_OBJECTS = 8.4
_EMPTY_IMAGES = 0.01
_MAX_OVERLAP = 0.75  # of the smaller of two boxes
_MIN_VISIBLE = 0.25  # of a shape: others cover up the rest


def draw_scene(
    rng: np.random.Generator, image_size: int
) -> tuple[np.ndarray, list[tuple[str, list[int]]]]:
    """Return a picture, (size, size, 3) in 0..255, and name and box ``[x, y, w, h]`` of each shape.

    A box encloses what is visible of its shape.
    """
    canvas = draw_background(rng, image_size) + _texture(rng, (image_size, image_size))
    canvas = canvas.clip(0, 255)
    if rng.random() < _EMPTY_IMAGES:
        return canvas, []
    count = min(rng.geometric(1 / _MEAN_OBJECTS), MAX_OBJECTS)
    shapes = paint_shapes(
        rng,
        canvas,
        names=NAMES,
        sides=_sides(rng, count, image_size),
        max_overlap=_MAX_OVERLAP,
        min_visible=_MIN_VISIBLE,
        texture=lambda shape: _texture(rng, shape),
    )
    return canvas, shapes


def _sides(rng: np.random.Generator, count: int, image_size: int) -> np.ndarray:
    sides = np.zeros(count)
    while (wrong := (sides < MIN_SIDE) | (sides > MAX_SHARE * image_size)).any():
        sides[wrong] = image_size * _MEDIAN * np.exp(_SIGMA * rng.standard_normal(wrong.sum()))
    return sides


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return waves of two random directions and lengths, (h, w, 1), to add to colours."""
    y, x = np.indices(shape, dtype=np.float32)
    waves = np.zeros(shape, np.float32)
    for _ in range(2):
        angle, length = rng.uniform(0, np.pi), rng.uniform(3, 24)
        phase = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length
        waves += rng.uniform(0, 18) * np.sin(phase + rng.uniform(0, 2 * np.pi))
    return waves[..., None]
