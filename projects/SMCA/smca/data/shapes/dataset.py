"""The files of the dataset of drawn shapes.

Every image is a function of (seed, split, index); :mod:`smca.data.shapes.drawing` draws it.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DatasetError
from ..coco import datasets_root
from .drawing import MIN_SIDE, SHAPES, draw_background, draw_shapes

logger = logging.getLogger(__name__)

# A picture, (h, w, 3) in 0..255, and name and box [x, y, w, h] of each object.
Drawing = tuple[np.ndarray, list[tuple[str, list[int]]]]

VERSION = 1  # of the drawing: a dataset of another version is not reused
# The built-in datasets, and the number of their images.
SPLITS = ("shapes_train", "shapes_val")
QUICKSTART = {"num_train": 4000, "num_val": 400}

_EMPTY_IMAGES = 0.02


def missing_shapes(names: Iterable[str]) -> str | None:
    """Return the folder to draw shapes_train and shapes_val in, if it does not exist and one of
    them is among the ``names`` of built-in datasets; otherwise None.
    """
    root = os.path.join(datasets_root(), "shapes")
    return root if set(SPLITS).intersection(names) and not os.path.lexists(root) else None


def write_shapes_dataset(
    root: str | os.PathLike,
    *,
    num_train: int,
    num_val: int,
    image_size: int = 128,
    num_classes: int = 3,
    max_objects: int = 5,
    min_side: int = MIN_SIDE,
    max_side: int | None = None,
    seed: int = 0,
) -> dict[str, tuple[str, str]]:
    """Write ``root/{train,val}/000001.png ...`` and ``root/annotations/{train,val}.json``.

    The folder appears whole or not at all. A folder that was written with the same arguments is
    reused; anything else found there is left as it is. An annotation's area is that of its box.

    Args:
        root: the dataset's folder.
        num_train, num_val: images of each split; about one in fifty has no object.
        image_size: side of the square images, in pixels.
        num_classes: how many of ``SHAPES`` are used, from the first.
        max_objects: the most objects of an image.
        min_side, max_side: range of the objects' sides (square roots of box areas), in pixels;
            None: 0.85 of the image's.
        seed: >= 0.

    Returns:
        annotation file and image folder of each split.

    Raises:
        ValueError: an argument is out of its range.
        DatasetError: ``root`` holds something else.
    """
    counts = {"train": num_train, "val": num_val}
    options = {
        "image_size": image_size,
        "num_classes": num_classes,
        "max_objects": max_objects,
        "seed": seed,
    }
    # Written only if they are not the default, as in datasets older than these arguments.
    if min_side != MIN_SIDE:
        options["min_side"] = min_side
    if max_side is not None:
        options["max_side"] = max_side
    names = tuple(SHAPES)[:num_classes]
    _check({f"num_{split}": count for split, count in counts.items()} | options)

    def draw(rng: np.random.Generator) -> Drawing:
        canvas = draw_background(rng, image_size)
        objects = []
        if rng.random() >= _EMPTY_IMAGES:
            objects = draw_shapes(
                rng,
                canvas,
                names=names,
                max_objects=max_objects,
                min_side=min_side,
                max_side=max_side,
            )
        return canvas, objects

    return write_drawings(root, draw, names=names, counts=counts, arguments=options)


def write_drawings(
    root: str | os.PathLike,
    draw: Callable[[np.random.Generator], Drawing],
    *,
    names: Sequence[str],
    counts: Mapping[str, int],
    arguments: Mapping[str, int],
) -> dict[str, tuple[str, str]]:
    """Write a dataset like :func:`write_shapes_dataset` of pictures that ``draw`` returns.

    Args:
        root: the dataset's folder.
        draw: returns a picture, (size, size, 3) in 0..255, and name and box of each object.
        names: the classes, of ``SHAPES``.
        counts: number of images of each split.
        arguments: what else decides about the pictures, with their "seed".

    Raises:
        DatasetError: ``root`` holds something else.
    """
    arguments = {f"num_{split}": count for split, count in counts.items()} | dict(arguments)
    root = Path(root)
    files = {
        split: (str(root / "annotations" / f"{split}.json"), str(root / split)) for split in counts
    }
    info = {"description": "drawn shapes", "version": VERSION, "arguments": arguments}
    if os.path.lexists(root):
        if _is_complete(files, info):
            logger.info("Reusing the shapes dataset in %s", root)
            return files
        if not root.is_dir() or any(root.iterdir()):
            words = ", ".join(f"{name} {value}" for name, value in arguments.items())
            raise DatasetError(
                f"{root} exists and is not the shapes dataset asked for ({words}); name another "
                "folder, or remove this one if nothing in it is needed"
            )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
        partial = Path(folder) / root.name
        (partial / "annotations").mkdir(parents=True)
        for number, (split, count) in enumerate(counts.items()):
            generators = (
                np.random.default_rng([arguments["seed"], number, index])
                for index in range(1, count + 1)
            )
            content = {"info": info, **_write_split(partial / split, map(draw, generators), names)}
            (partial / "annotations" / f"{split}.json").write_text(json.dumps(content))
        try:
            partial.rename(root)
        except OSError:
            # Another process may have been faster.
            if not _is_complete(files, info):
                raise
    logger.info(
        "Wrote %s images of drawn shapes to %s", " + ".join(map(str, counts.values())), root
    )
    return files


def _write_split(folder: Path, drawings: Iterable[Drawing], names: Sequence[str]) -> dict:
    """Write the images of a split, and return the content of its annotation file."""
    folder.mkdir()
    images, annotations = [], []
    for index, (canvas, objects) in enumerate(drawings, start=1):
        file_name = f"{index:06d}.png"
        Image.fromarray(canvas.round().astype(np.uint8)).save(folder / file_name, compress_level=1)
        height, width = canvas.shape[:2]
        images.append({"id": index, "file_name": file_name, "width": width, "height": height})
        for name, box in objects:
            annotation = {"id": len(annotations) + 1, "image_id": index}
            annotation |= {"category_id": SHAPES[name], "bbox": box}
            annotations.append({**annotation, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": SHAPES[name], "name": name} for name in names]
    return {"licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _is_complete(files: Mapping[str, tuple[str, str]], info: dict) -> bool:
    try:
        return all(
            json.loads(Path(annotations).read_text())["info"] == info
            and len(list(Path(images).glob("*.png"))) == info["arguments"][f"num_{split}"]
            for split, (annotations, images) in files.items()
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _check(arguments: Mapping[str, int]) -> None:
    ranges = {
        "num_train": (1, 999_999),
        "num_val": (1, 999_999),
        "image_size": (32, 4096),
        "num_classes": (1, len(SHAPES)),
        "max_objects": (1, 1000),
        "min_side": (8, arguments["image_size"]),
        "max_side": (arguments.get("min_side", MIN_SIDE), arguments["image_size"]),
        "seed": (0, 2**63 - 1),
    }
    for name, value in arguments.items():
        low, high = ranges[name]
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
