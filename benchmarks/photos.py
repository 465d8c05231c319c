"""Draw pictures of shapes with the sizes and file formats of photographs, in COCO's format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from smca.data.coco import CocoDataset, load_coco
from smca.data.shapes.drawing import SHAPES, draw_background, draw_shapes
from smca.structures import Size

# Options of Pillow's save: JPEG files become about as large as COCO's, PNG files are written like
# those of the shapes dataset.
FORMATS = {"jpg": {"quality": 95}, "png": {"compress_level": 1}}
# The most objects in an image; COCO's images have seven on average.
OBJECTS = 14


def draw_photo(index: int, size: Size) -> tuple[Image.Image, list[tuple[str, list[int]]]]:
    """Return a picture of (h, w) pixels, and name and box ``[x, y, w, h]`` of each shape."""
    rng = np.random.default_rng(index)
    height, width = size
    side = max(size)
    canvas = draw_background(rng, side)
    # Shapes stay small in large pictures, because large shapes take long to draw.
    sides = {"min_side": min(20, side / 4), "max_side": min(400, side / 2)}
    shapes = draw_shapes(rng, canvas, names=tuple(SHAPES), max_objects=OBJECTS, **sides)
    inside = [
        (name, [x, y, min(w, width - x), min(h, height - y)])
        for name, (x, y, w, h) in shapes
        if x < width and y < height
    ]
    return Image.fromarray(canvas[:height, :width].round().astype(np.uint8)), inside


def write_photos(root: Path, count: int, *, size: Size, kind: str) -> CocoDataset:
    """Write and return a dataset in which every third picture is in portrait format.

    Args:
        root: the folder in which to create ``KIND.json`` and the folder ``KIND``.
        count: number of pictures.
        size: (h, w) in pixels.
        kind: a key of ``FORMATS``.
    """
    folder = root / kind
    folder.mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        height, width = size[::-1] if index % 3 == 2 else size
        photo, objects = draw_photo(index, (height, width))
        file_name = f"{index:06d}.{kind}"
        photo.save(folder / file_name, **FORMATS[kind])
        images.append({"id": index, "file_name": file_name, "width": width, "height": height})
        annotations += [
            {"image_id": index, "category_id": SHAPES[name], "bbox": box} for name, box in objects
        ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in SHAPES.items()],
    }
    file = root / f"{kind}.json"
    file.write_text(json.dumps(content))
    return load_coco(kind, str(file), str(folder))
