import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import binary_erosion, binary_fill_holes

from smca.data.shapes import write_shapes_dataset
from smca.data.shapes.drawing import SHAPES, draw_background, draw_shapes
from smca.engine.prepare import prepare
from smca.errors import DatasetError

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


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


def test_same_seed_same_bytes_and_another_seed_others(dataset, tmp_path):
    root, _ = dataset
    write_shapes_dataset(tmp_path / "again", num_train=150, num_val=10, seed=3)
    assert contents(tmp_path / "again") == contents(root)
    write_shapes_dataset(tmp_path / "other", num_train=150, num_val=10, seed=4)
    assert contents(tmp_path / "other")["train/000001.png"] != contents(root)["train/000001.png"]


def test_an_image_depends_on_neither_the_number_of_images_nor_the_other_split(dataset, tmp_path):
    root, _ = dataset
    write_shapes_dataset(tmp_path / "few", num_train=3, num_val=3, seed=3)
    few, many = contents(tmp_path / "few"), contents(root)
    assert all(few[name] == many[name] for name in few if name.endswith(".png"))
    assert few["train/000001.png"] != few["val/000001.png"]


def test_the_same_dataset_is_reused(tmp_path):
    arguments = {"num_train": 2, "num_val": 1, "image_size": 64}
    first = write_shapes_dataset(tmp_path / "shapes", **arguments)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_shapes_dataset(tmp_path / "shapes", **arguments) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_another_dataset_or_foreign_folder_is_refused_and_kept(tmp_path):
    write_shapes_dataset(tmp_path / "shapes", num_train=2, num_val=1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    before = contents(tmp_path)
    for folder in ("shapes", "foreign", "foreign/thesis.txt"):
        with pytest.raises(DatasetError, match=f"{folder}.*name another folder, or remove"):
            write_shapes_dataset(tmp_path / folder, num_train=3, num_val=1)
    assert contents(tmp_path) == before


def test_a_dataset_that_lost_an_image_is_not_reused(tmp_path):
    write_shapes_dataset(tmp_path / "shapes", num_train=2, num_val=1)
    (tmp_path / "shapes/train/000002.png").unlink()
    with pytest.raises(DatasetError, match="not the shapes dataset asked for"):
        write_shapes_dataset(tmp_path / "shapes", num_train=2, num_val=1)


def test_an_empty_folder_is_filled(tmp_path):
    write_shapes_dataset(tmp_path, num_train=1, num_val=1)
    assert (tmp_path / "train/000001.png").is_file()


def test_a_faster_process_has_drawn_it(tmp_path, monkeypatch):
    arguments = {"num_train": 2, "num_val": 1, "image_size": 64}
    write_shapes_dataset(tmp_path / "first", **arguments)
    rename = Path.rename

    def late(path, target):
        shutil.copytree(tmp_path / "first", target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    write_shapes_dataset(tmp_path / "shapes", **arguments)
    assert contents(tmp_path / "shapes") == contents(tmp_path / "first")
    with pytest.raises(OSError):
        write_shapes_dataset(tmp_path / "other", **arguments, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "other", "shapes"]


@pytest.fixture
def quickstart(config, tmp_path, monkeypatch, capsys):
    """``quickstart("KEY", value, ...)``: prepares a run in an empty folder; what is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.setattr("smca.engine.prepare.QUICKSTART", {"num_train": 2, "num_val": 1})

    def start(*opts):
        prepare(config("quickstart", *opts))
        return capsys.readouterr().err

    return start


def test_the_quickstart_draws_its_dataset_once(quickstart, tmp_path, monkeypatch):
    assert quickstart() == "Drawing 3 images of shapes in datasets/shapes, once\n"
    drawn = contents(tmp_path / "datasets/shapes")
    assert {"annotations/train.json", "train/000002.png", "val/000001.png"} < drawn.keys()
    assert not quickstart() and contents(tmp_path / "datasets/shapes") == drawn
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "else where"))
    assert str(tmp_path / "else where/shapes") in quickstart("DATASETS.TRAIN", ())
    assert contents(tmp_path / "else where/shapes") == drawn


def test_only_what_is_missing_and_used_is_drawn(quickstart, tmp_path):
    own = [["shapes_train", "mine.json", "mine"], ["shapes_val", "mine.json", "mine"]]
    for opts in (
        ("DATASETS.COCO_FORMAT", own),
        ("DATASETS.TRAIN", ("coco_2017_train",), "DATASETS.TEST", ("coco_2017_val",)),
    ):
        assert not quickstart(*opts)
        assert not (tmp_path / "datasets").exists()
    (tmp_path / "datasets/shapes").mkdir(parents=True)
    assert not quickstart()
    assert not any((tmp_path / "datasets/shapes").iterdir())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, interruption):
    save, calls = Image.Image.save, []

    def failing_save(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise interruption
        save(*args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", failing_save)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_shapes_dataset(tmp_path / "shapes", num_train=3, num_val=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train", 0),
        ("num_classes", 21),
        ("image_size", 16),
        ("max_objects", 0),
        ("min_side", 4),
        ("max_side", 10),
        ("seed", -1),
    ],
)
def test_impossible_arguments_are_named(tmp_path, name, value):
    arguments = {"num_train": 1, "num_val": 1} | {name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be from"):
        write_shapes_dataset(tmp_path / "shapes", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_program(tmp_path):
    command = [sys.executable, ROOT / "tools/make_shapes_dataset.py", "--train", "30", "--val", "2"]
    command += ["--size", "64", "--output", tmp_path / "shapes"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    objects = json.loads((tmp_path / "shapes/annotations/train.json").read_text())["annotations"]
    small = sum(item["area"] < 32**2 for item in objects)
    counts = f"30 images (0 without objects), {len(objects)} objects: {small} small, "
    assert counts in result.stdout
    (tmp_path / "shapes/val/000001.png").unlink()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'shapes'} exists")
