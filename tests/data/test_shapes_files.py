"""The files of drawn shapes: the same for the same arguments, whole, and nobody else's."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from smca.data.shapes import write_shapes_dataset
from smca.engine.prepare import prepare
from smca.errors import DatasetError

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes_dataset(root, num_train=20, num_val=10, seed=3)
    return root


def test_same_seed_same_bytes_and_another_seed_others(dataset, tmp_path):
    write_shapes_dataset(tmp_path / "again", num_train=20, num_val=10, seed=3)
    assert contents(tmp_path / "again") == contents(dataset)
    write_shapes_dataset(tmp_path / "other", num_train=20, num_val=10, seed=4)
    assert contents(tmp_path / "other")["train/000001.png"] != contents(dataset)["train/000001.png"]


def test_an_image_depends_on_neither_the_number_of_images_nor_the_other_split(dataset, tmp_path):
    write_shapes_dataset(tmp_path / "few", num_train=3, num_val=3, seed=3)
    few, many = contents(tmp_path / "few"), contents(dataset)
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


def test_the_program(program, tmp_path):
    command = ["tools/make_shapes_dataset.py", "--train", "30", "--val", "2"]
    command += ["--size", "64", "--output", tmp_path / "shapes"]
    printed = program(*command).done()
    objects = json.loads((tmp_path / "shapes/annotations/train.json").read_text())["annotations"]
    small = sum(item["area"] < 32**2 for item in objects)
    counts = f"30 images (0 without objects), {len(objects)} objects: {small} small, "
    assert counts in printed
    (tmp_path / "shapes/val/000001.png").unlink()
    ended = program(*command)
    assert ended.returncode == 2
    assert f"{tmp_path / 'shapes'} exists" in ended.last
