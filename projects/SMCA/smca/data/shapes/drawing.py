"""Pictures of shapes: noisy backgrounds, five outlines, four fills, and exact boxes.

Only its outline and fill tell an object's class; colours, sizes, slants and the background are
random.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

MIN_SIDE = 20  # pixels; sides are square roots of box areas
_LARGEST_SIDE = 0.85  # of the canvas
_MAX_SLANT = np.pi / 18
_MAX_OVERLAP = 0.2  # of the smaller of two boxes
_MIN_CONTRAST = 110.0  # distance in RGB to what lies beneath
_SUPERSAMPLING = 4
_HOLE = 0.58  # of a hollow shape's outline
_STRIPE = 0.2  # of a striped shape's side


def _spokes(radii: Iterable[float]) -> np.ndarray:
    """Return a closed outline with these radii at equal angles, the first one upwards."""
    radii = np.asarray(list(radii))
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _rectangle(rng: np.random.Generator) -> np.ndarray:
    ratio = 2.0 ** rng.uniform(-1, 1)
    return np.array([(0, 0), (ratio, 0), (ratio, 1), (0, 1)])


def _triangle(rng: np.random.Generator) -> np.ndarray:
    apex = (rng.uniform(0.2, 0.8), rng.choice([-1, 1]) * rng.uniform(0.7, 1.2))
    return np.array([(0, 0), (1, 0), apex])


def _cross(rng: np.random.Generator) -> np.ndarray:
    a = rng.uniform(0.25, 0.4)
    quarter = np.array([(-a, -1), (a, -1), (a, -a)])
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    return np.floor(along / _STRIPE + 0.5) % 2 == 1


# The outline of a shape, as (K, 2) points x, y in any unit.
_OUTLINES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "circle": lambda rng: _spokes([1.0] * 64),
    "rectangle": _rectangle,
    "triangle": _triangle,
    "star": lambda rng: _spokes([1.0, 0.42] * 5),
    "cross": _cross,
}
# Where the second colour lies, given x and y from the middle of the box in units of the shape's
# side.
_PATTERNS: dict[str, Callable[..., np.ndarray]] = {
    "striped": _stripes,
    "quartered": lambda rng, x, y: (x > 0) == (y > 0),
}

# The COCO ids of the classes. They have gaps, as COCO's have, so that code which takes an id for an
# index fails.
_IDS = (1, 3, 7, 8, 11, 13, 14, 17, 18, 19, 23, 24, 28, 31, 32, 37, 38, 41, 44, 47)
_FILLS = ("", "hollow ", "striped ", "quartered ")
SHAPES: dict[str, int] = dict(
    zip([fill + outline for fill in _FILLS for outline in _OUTLINES], _IDS, strict=True)
)


def draw_background(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """Draw a soft patchwork of greyish colours with noise: (size, size, 3) float32 in 0..255."""
    cells = rng.integers(2, 5)
    color = rng.integers(40, 216) + rng.normal(0, 20, 3)
    patches = color + rng.normal(0, 12, (cells, cells, 3))
    patches = Image.fromarray(patches.clip(0, 255).astype(np.uint8))
    smooth = np.asarray(patches.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return _noisy(rng, smooth, rng.uniform(2, 8))


def draw_shapes(
    rng: np.random.Generator,
    canvas: np.ndarray,
    *,
    names: tuple[str, ...],
    max_objects: int,
    min_side: float = MIN_SIDE,
    max_side: float | None = None,
) -> list[tuple[str, list[int]]]:
    """Paint 1 to ``max_objects`` shapes on ``canvas`` (size, size, 3), float, in place.

    Smaller shapes lie in front. A shape that finds no free place is left out.

    Args:
        rng: source of all random numbers.
        canvas: changed.
        names: of ``SHAPES``, each as likely.
        max_objects: the most shapes.
        min_side, max_side: range of the sides in pixels; a side is the square root of a box's
            area, and its logarithm is uniform. None: 0.85 of the canvas.

    Returns:
        name and box ``[x, y, w, h]`` of each shape. A box encloses exactly the pixels that its
        shape colours, however faintly, and that no other shape covers.
    """
    size = len(canvas)
    low, high = np.log(min_side), np.log(_LARGEST_SIDE * size if max_side is None else max_side)
    sides = np.exp(rng.uniform(low, high, rng.integers(1, max_objects + 1)))
    return paint_shapes(rng, canvas, names=names, sides=sides)


def paint_shapes(
    rng: np.random.Generator,
    canvas: np.ndarray,
    *,
    names: Sequence[str],
    sides: Sequence[float],
    max_overlap: float = _MAX_OVERLAP,
    min_visible: float = 0.0,
    colors: tuple[Callable[[str], np.ndarray], Callable[[str], np.ndarray]] | None = None,
    texture: Callable[[tuple[int, int]], np.ndarray] | None = None,
) -> list[tuple[str, list[int]]]:
    """Paint one shape for each of ``sides``, in pixels, as :func:`draw_shapes` does.

    Args:
        rng, canvas, names: as there.
        sides: of the shapes; those that find no free place are left out.
        max_overlap: of two boxes, over the area of the smaller.
        min_visible: a shape of which the others leave less than this share is not returned.
        colors: draw a shape's first and second colour for its name, as often as it takes to find
            one that stands out; None: all colours are as likely.
        texture: returns for (h, w) what to add to a shape's colours, broadcast to (h, w, 3).

    Returns:
        as there.
    """
    first, further = colors or ((lambda _: rng.integers(0, 256, 3)),) * 2
    topmost = np.full(canvas.shape[:2], -1)
    placed: list[tuple[str, np.ndarray, int]] = []
    for side in sorted(sides, reverse=True):
        name = str(rng.choice(names))
        coverage, second = _coverage(rng, name, side, len(canvas))
        box = _free_place(
            rng, coverage.shape, len(canvas), [box for _, box, _ in placed], max_overlap
        )
        if box is None:
            continue
        window = np.s_[box[1] : box[3], box[0] : box[2]]
        beneath = canvas[window]
        ground = beneath.mean(axis=(0, 1))
        color = _contrasting_color(partial(first, name), ground)
        if second is not None:
            other = _contrasting_color(partial(further, name), ground, color)
            color = color + second[..., None] * (other - color)
        if texture is not None:
            color = color + texture(coverage.shape)
        paint = _noisy(rng, np.broadcast_to(color, beneath.shape), rng.uniform(2, 8))
        beneath += coverage[..., None] * (paint - beneath)
        topmost[window][coverage > 0] = len(placed)
        placed.append((name, box, np.count_nonzero(coverage)))
    shapes = []
    for index, (name, _, whole) in enumerate(placed):
        seen = topmost == index
        if np.count_nonzero(seen) <= min_visible * whole:
            continue
        x1, y1, x2, y2 = Image.fromarray(seen).getbbox()
        shapes.append((name, [x1, y1, x2 - x1, y2 - y1]))
    return shapes


def _noisy(rng: np.random.Generator, image: np.ndarray, sigma: float) -> np.ndarray:
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return (image + np.float32(sigma) * noise).clip(0, 255).astype(np.float32)


def _coverage(
    rng: np.random.Generator, name: str, side: float, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw a shape in its box.

    Returns:
        how much of each pixel the shape covers, and how much of that in its second colour, both
        (h, w) in [0, 1]; the latter is None for a shape of one colour.
    """
    fill, _, outline = name.rpartition(" ")
    slant = rng.uniform(-_MAX_SLANT, _MAX_SLANT)
    rotation = np.array([(np.cos(slant), np.sin(slant)), (-np.sin(slant), np.cos(slant))])
    points = _OUTLINES[outline](rng) @ rotation
    points -= points.min(axis=0)
    extent = points.max(axis=0)
    w, h = (extent * side / np.sqrt(extent.prod())).round().clip(2, size).astype(int)
    fine = np.array([w, h]) * _SUPERSAMPLING
    points = points / extent * (fine - 1)
    mask = Image.new("L", tuple(fine.tolist()))
    draw = ImageDraw.Draw(mask)
    draw.polygon(points.round().astype(int).ravel().tolist(), fill=255)
    if fill == "hollow":
        hole = points.mean(axis=0) + _HOLE * (points - points.mean(axis=0))
        draw.polygon(hole.round().astype(int).ravel().tolist(), fill=0)
    second = None
    if fill in _PATTERNS:
        y, x = (np.indices((fine[1], fine[0])) + 0.5 - fine[::-1, None, None] / 2) / np.sqrt(
            fine.prod()
        )
        second = _reduced(Image.fromarray(_PATTERNS[fill](rng, x, y).astype(np.uint8) * 255))
    return _reduced(mask), second


def _reduced(fine: Image.Image) -> np.ndarray:
    return np.asarray(fine.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


def _free_place(
    rng: np.random.Generator,
    shape: tuple[int, int],
    size: int,
    others: list[np.ndarray],
    max_overlap: float,
) -> np.ndarray | None:
    """Draw a box ``x1, y1, x2, y2`` of this (h, w) that overlaps the others by no more, or None."""
    extent = np.array(shape[::-1])
    for _ in range(20):
        corner = rng.integers(0, size - extent + 1)
        box = np.concatenate([corner, corner + extent])
        if all(_overlap(box, other) <= max_overlap for other in others):
            return box
    return None


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection of two xyxy boxes over the area of the smaller."""
    common = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return common / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())


def _contrasting_color(draw: Callable[[], np.ndarray], *others: np.ndarray) -> np.ndarray:
    while True:
        color = draw()
        if all(np.linalg.norm(color - other) >= _MIN_CONTRAST for other in others):
            return color
