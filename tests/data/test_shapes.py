import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import binary_erosion, binary_fill_holes

from smca.data.shapes import write_shapes_dataset
from smca.data.shapes.drawing import SHAPES, draw_background, draw_shapes

ROOT = Path(__file__).parents[2]


def load(json_file: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(json_file)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    return root, write_shapes_dataset(root, num_train=150, num_val=10, seed=3)


def test_pycocotools_loads_it_and_every_image_is_there(dataset):
    root, files = dataset
    assert files == {
        split: (str(root / "annotations" / f"{split}.json"), str(root / split))
        for split in ("train", "val")
    }
    for (json_file, folder), count in zip(files.values(), (150, 10), strict=True):
        coco = load(json_file)
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [
            "circle",
            "rectangle",
            "triangle",
        ]
        assert coco.getCatIds() == [1, 3, 7]
        assert len(coco.getImgIds()) == count == len(list(Path(folder).iterdir()))
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(Path(folder) / image["file_name"]) as picture:
                assert (picture.format, picture.mode) == ("PNG", "RGB")
                assert picture.size == (image["width"], image["height"]) == (128, 128)


def test_objects_vary_as_promised(dataset):
    coco = load(dataset[1]["train"][0])
    objects = coco.loadAnns(coco.getAnnIds())
    per_image = [len(coco.getAnnIds(imgIds=[i])) for i in coco.getImgIds()]
    assert min(per_image) == 0 and max(per_image) == 5
    assert sum(count == 0 for count in per_image) <= 10
    assert {o["category_id"] for o in objects} == {1, 3, 7}
    assert all(o["area"] == o["bbox"][2] * o["bbox"][3] and o["iscrowd"] == 0 for o in objects)
    sides = np.sqrt([o["area"] for o in objects])
    small, large = np.mean(sides < 32), np.mean(sides > 96)
    assert 0.25 < small < 0.6 and 0.01 < large < 0.2


def test_the_default_dataset_stays_what_it_was(dataset):
    root, _ = dataset
    content = json.loads((root / "annotations/train.json").read_text())
    told = json.dumps([content["info"], content["annotations"]]).encode()
    assert hashlib.sha256(told).hexdigest() == (
        "bc55efa4a5ae47b6bb6045dac5dc324b9e7e3c79923ca3ec71db98139f3e8804"
    )
    means = []
    for index in (1, 150):
        with Image.open(root / f"train/{index:06d}.png") as picture:
            means.append(np.asarray(picture).mean(axis=(0, 1)))
    assert_allclose(means, [[169.9, 159.1, 166.8], [106.7, 99.7, 95.0]], atol=0.1)


def test_twenty_classes_have_ids_of_their_own_with_gaps():
    ids = list(SHAPES.values())
    assert len(SHAPES) == 20 and ids == sorted(set(ids)) and max(ids) > 2 * len(ids)


@pytest.mark.parametrize("name", SHAPES)
def test_boxes_are_tight(name):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        background = draw_background(rng, 128)
        canvas = background.copy()
        [(drawn, (x, y, w, h))] = draw_shapes(
            rng, canvas, names=(name,), max_objects=1, min_side=12
        )
        rows, columns = np.nonzero((canvas != background).any(axis=2))
        assert drawn == name
        assert (columns.min(), rows.min()) == (x, y)
        assert (columns.max() + 1, rows.max() + 1) == (x + w, y + h)


def lone_shape(name: str, seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The window of a shape's box (h, w, 3), and whether it was drawn on (h, w)."""
    rng = np.random.default_rng(seed)
    background = draw_background(rng, 128)
    canvas = background.copy()
    [(_, (x, y, w, h))] = draw_shapes(
        rng, canvas, names=(name,), max_objects=1, min_side=side, max_side=side
    )
    window = np.s_[y : y + h, x : x + w]
    return canvas[window], (canvas != background).any(axis=2)[window]


@pytest.mark.parametrize("side", [12, 48])
@pytest.mark.parametrize("outline", list(SHAPES)[:5])
def test_fills_differ(outline, side):
    for seed in range(3):
        parts, drawn = lone_shape(outline, seed, side)
        assert np.sqrt(drawn.size) == pytest.approx(side, abs=1)
        # Pixels far from the edges have one colour, but for the noise.
        assert spread(parts[inner(drawn)]) < 60
        assert not holes(drawn)
        assert holes(lone_shape(f"hollow {outline}", seed, side)[1])
        for fill in ("striped", "quartered"):
            parts, drawn = lone_shape(f"{fill} {outline}", seed, side)
            assert spread(parts[drawn]) > 80


def holes(drawn: np.ndarray) -> int:
    """Pixels that are enclosed and not drawn on."""
    return int((binary_fill_holes(drawn) & ~drawn).sum())


def inner(drawn: np.ndarray) -> np.ndarray:
    return binary_erosion(drawn, iterations=2)


def spread(colors: np.ndarray) -> float:
    """The greatest distance of colours (K, 3) from their middle, outliers left out, doubled."""
    middle = (np.quantile(colors, 0.05, axis=0) + np.quantile(colors, 0.95, axis=0)) / 2
    return 2 * float(np.quantile(np.linalg.norm(colors - middle, axis=1), 0.8))


def test_crowded_scenes(tmp_path):
    files = write_shapes_dataset(
        tmp_path / "shapes",
        num_train=6,
        num_val=1,
        image_size=256,
        num_classes=20,
        max_objects=40,
        min_side=12,
        max_side=48,
    )
    coco = load(files["train"][0])
    assert {c["name"]: c["id"] for c in coco.loadCats(coco.getCatIds())} == SHAPES
    objects = coco.loadAnns(coco.getAnnIds())
    assert max(len(coco.getAnnIds(imgIds=[i])) for i in coco.getImgIds()) > 20
    sides = np.sqrt([o["area"] for o in objects])
    assert sides.max() < 50 and 0.5 < np.mean(sides < 32) < 0.9
    assert len({o["category_id"] for o in objects}) > 15


def test_boxes_together_enclose_just_what_is_drawn_and_hardly_overlap():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        background = draw_background(rng, 128)
        canvas = background.copy()
        boxes = [box for _, box in draw_shapes(rng, canvas, names=("circle",), max_objects=5)]
        union = np.zeros((128, 128), dtype=int)
        for x, y, w, h in boxes:
            union[y : y + h, x : x + w] += 1
        drawn = (canvas != background).any(axis=2)
        assert not drawn[union == 0].any()
        assert (union > 1).sum() <= 0.2 * sum(w * h for _, _, w, h in boxes)
