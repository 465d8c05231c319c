"""A dataset of drawn shapes in COCO's format, so that everything runs without a download.

The class of an object is told by its shape alone; colours, sizes, slants and the noisy background
are random. Every image is a function of (seed, split, index).
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .coco import DatasetError

logger = logging.getLogger(__name__)

VERSION = 1  # of the drawing: a dataset of another version is not reused
SPLITS = ("train", "val")

_SMALLEST_SIDE = 20  # pixels; sides are square roots of box areas
_LARGEST_SIDE = 0.85  # of the canvas
_MAX_SLANT = np.pi / 18
_MAX_OVERLAP = 0.2  # of the smaller of two boxes
_MIN_CONTRAST = 110.0  # distance in RGB to what lies beneath
_EMPTY_IMAGES = 0.02
_SUPERSAMPLING = 4


def _spokes(radii: Iterable[float]) -> np.ndarray:
    """A closed outline with the given radii at equal angles, the first one upwards."""
    radii = np.asarray(list(radii))
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _circle(rng: np.random.Generator) -> np.ndarray:
    return _spokes([1.0] * 64)


def _rectangle(rng: np.random.Generator) -> np.ndarray:
    ratio = 2.0 ** rng.uniform(-1, 1)
    return np.array([(0, 0), (ratio, 0), (ratio, 1), (0, 1)])


def _triangle(rng: np.random.Generator) -> np.ndarray:
    apex = (rng.uniform(0.2, 0.8), rng.choice([-1, 1]) * rng.uniform(0.7, 1.2))
    return np.array([(0, 0), (1, 0), apex])


def _star(rng: np.random.Generator) -> np.ndarray:
    return _spokes([1.0, 0.42] * 5)


def _cross(rng: np.random.Generator) -> np.ndarray:
    a = rng.uniform(0.25, 0.4)
    quarter = np.array([(-a, -1), (a, -1), (a, -a)])
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


# name: (COCO id, outline). An outline is (K, 2) points x, y in any unit. The ids have gaps, as
# COCO's have, so that whoever takes an id for an index is found out.
SHAPES: dict[str, tuple[int, Callable[[np.random.Generator], np.ndarray]]] = {
    "circle": (1, _circle),
    "rectangle": (3, _rectangle),
    "triangle": (7, _triangle),
    "star": (8, _star),
    "cross": (11, _cross),
}


def draw_background(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """A soft patchwork of greyish colours with noise: (size, size, 3) float32 in 0..255."""
    cells = rng.integers(2, 5)
    color = rng.integers(40, 216) + rng.normal(0, 20, 3)
    patches = color + rng.normal(0, 12, (cells, cells, 3))
    patches = Image.fromarray(patches.clip(0, 255).astype(np.uint8))
    smooth = np.asarray(patches.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return _noisy(rng, smooth, rng.uniform(2, 8))


def draw_shapes(
    rng: np.random.Generator, canvas: np.ndarray, *, names: tuple[str, ...], max_objects: int
) -> list[tuple[str, list[int]]]:
    """Paint 1 to ``max_objects`` shapes on ``canvas`` (size, size, 3), float, in place.

    Smaller shapes lie in front. What finds no free place is left out.

    Returns:
        name and box ``[x, y, w, h]`` of each; a box encloses exactly the pixels of which its shape
        is the topmost to colour them, however faintly.
    """
    size = len(canvas)
    low, high = np.log(_SMALLEST_SIDE), np.log(_LARGEST_SIDE * size)
    sides = np.exp(rng.uniform(low, high, rng.integers(1, max_objects + 1)))
    topmost = np.full((size, size), -1)
    placed: list[tuple[str, np.ndarray]] = []
    for side in sorted(sides, reverse=True):
        name = str(rng.choice(names))
        coverage = _coverage(rng, name, side, size)
        box = _free_place(rng, coverage.shape, size, [box for _, box in placed])
        if box is None:
            continue
        window = np.s_[box[1] : box[3], box[0] : box[2]]
        beneath = canvas[window]
        color = _contrasting_color(rng, beneath.mean(axis=(0, 1)))
        paint = _noisy(rng, np.broadcast_to(color, beneath.shape), rng.uniform(2, 8))
        beneath += coverage[..., None] * (paint - beneath)
        topmost[window][coverage > 0] = len(placed)
        placed.append((name, box))
    return [(name, _extent(topmost == index)) for index, (name, _) in enumerate(placed)]


def _noisy(rng: np.random.Generator, image: np.ndarray, sigma: float) -> np.ndarray:
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return (image + np.float32(sigma) * noise).clip(0, 255).astype(np.float32)


def _coverage(rng: np.random.Generator, name: str, side: float, size: int) -> np.ndarray:
    """How much of each pixel of its box a shape covers: (h, w) in [0, 1]."""
    slant = rng.uniform(-_MAX_SLANT, _MAX_SLANT)
    rotation = np.array([(np.cos(slant), np.sin(slant)), (-np.sin(slant), np.cos(slant))])
    points = SHAPES[name][1](rng) @ rotation
    points -= points.min(axis=0)
    extent = points.max(axis=0)
    w, h = (extent * side / np.sqrt(extent.prod())).round().clip(2, size).astype(int)
    fine = np.array([w, h]) * _SUPERSAMPLING
    mask = Image.new("L", tuple(fine.tolist()))
    outline = (points / extent * (fine - 1)).round().astype(int)
    ImageDraw.Draw(mask).polygon(outline.ravel().tolist(), fill=255)
    return np.asarray(mask.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


def _free_place(
    rng: np.random.Generator, shape: tuple[int, int], size: int, others: list[np.ndarray]
) -> np.ndarray | None:
    """A random box ``x1, y1, x2, y2`` of this (h, w) that hardly overlaps the others."""
    extent = np.array(shape[::-1])
    for _ in range(20):
        corner = rng.integers(0, size - extent + 1)
        box = np.concatenate([corner, corner + extent])
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in others):
            return box
    return None


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection of two xyxy boxes over the area of the smaller."""
    common = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return common / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())


def _contrasting_color(rng: np.random.Generator, beneath: np.ndarray) -> np.ndarray:
    while True:
        color = rng.integers(0, 256, 3)
        if np.linalg.norm(color - beneath) >= _MIN_CONTRAST:
            return color


def _extent(mask: np.ndarray) -> list[int]:
    """The tight box ``[x, y, w, h]`` of a mask's pixels."""
    (x1, *_, x2), (y1, *_, y2) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (0, 1))
    return [int(x1), int(y1), int(x2 - x1 + 1), int(y2 - y1 + 1)]


def write_shapes_dataset(
    root: str | os.PathLike,
    *,
    num_train: int,
    num_val: int,
    image_size: int = 128,
    num_classes: int = 3,
    max_objects: int = 5,
    seed: int = 0,
) -> dict[str, tuple[str, str]]:
    """Write ``root/{train,val}/000001.png ...`` and ``root/annotations/{train,val}.json``.

    The folder appears whole or not at all. One that was written with the same arguments is reused;
    anything else found there is left as it is. An annotation's area is that of its box.

    Args:
        root: the dataset's folder.
        num_train, num_val: images of each split; about one in fifty has no object.
        image_size: side of the square images, in pixels.
        num_classes: the first so many of ``SHAPES``.
        max_objects: most objects in an image.
        seed: >= 0.

    Returns:
        annotation file and image folder of each split.

    Raises:
        ValueError: an argument out of its range.
        DatasetError: ``root`` holds something else.
    """
    arguments = {
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
        "num_classes": num_classes,
        "max_objects": max_objects,
        "seed": seed,
    }
    _check(arguments)
    root = Path(root)
    files = {
        split: (str(root / "annotations" / f"{split}.json"), str(root / split)) for split in SPLITS
    }
    info = {"description": "drawn shapes", "version": VERSION, "arguments": arguments}
    counts = dict(zip(SPLITS, (num_train, num_val), strict=True))
    if root.is_symlink() or root.exists():
        if _is_complete(files, info, counts):
            logger.info("Reusing the shapes dataset in %s", root)
            return files
        if not root.is_dir() or any(root.iterdir()):
            raise DatasetError(
                f"{root} exists and is not the shapes dataset asked for ({_words(arguments)}); "
                "name another folder, or remove this one if nothing in it is needed"
            )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
        partial = Path(folder) / root.name
        (partial / "annotations").mkdir(parents=True)
        for split, count in counts.items():
            content = {"info": info} | _write_split(partial / split, split, count, arguments)
            (partial / "annotations" / f"{split}.json").write_text(json.dumps(content))
        if root.exists():
            root.rmdir()
        partial.rename(root)
    logger.info("Wrote %d + %d images of drawn shapes to %s", num_train, num_val, root)
    return files


def _write_split(folder: Path, split: str, count: int, arguments: dict[str, int]) -> dict:
    folder.mkdir()
    size, seed = arguments["image_size"], arguments["seed"]
    names = tuple(SHAPES)[: arguments["num_classes"]]
    images, annotations = [], []
    for index in range(1, count + 1):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        canvas = draw_background(rng, size)
        objects = []
        if rng.random() >= _EMPTY_IMAGES:
            objects = draw_shapes(rng, canvas, names=names, max_objects=arguments["max_objects"])
        file_name = f"{index:06d}.png"
        Image.fromarray(canvas.round().astype(np.uint8)).save(folder / file_name, compress_level=1)
        images.append({"id": index, "file_name": file_name, "width": size, "height": size})
        annotations += [
            {
                "id": len(annotations) + position,
                "image_id": index,
                "category_id": SHAPES[name][0],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for position, (name, box) in enumerate(objects, start=1)
        ]
    categories = [{"id": SHAPES[name][0], "name": name} for name in names]
    return {
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _is_complete(files: dict[str, tuple[str, str]], info: dict, counts: dict[str, int]) -> bool:
    try:
        return all(
            json.loads(Path(annotations).read_text())["info"] == info
            and len(list(Path(images).glob("*.png"))) == counts[split]
            for split, (annotations, images) in files.items()
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _check(arguments: dict[str, int]) -> None:
    ranges = {
        "num_train": (1, 999_999),
        "num_val": (1, 999_999),
        "image_size": (32, 4096),
        "num_classes": (1, len(SHAPES)),
        "max_objects": (1, 1000),
        "seed": (0, 2**63 - 1),
    }
    for name, (low, high) in ranges.items():
        if not low <= arguments[name] <= high:
            raise ValueError(f"{name} is {arguments[name]}; it must be from {low} to {high}")


def _words(arguments: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in arguments.items())
