"""The scenes and the photographs of the races: what they hold, and how often."""

import json
import zipfile

import numpy as np
import pytest
import scenes
import tree_crowns
from PIL import Image
from scenes import draw_scene, write_scenes

from smca.data.coco import load_coco
from smca.data.shapes.drawing import paint_shapes
from smca.errors import DatasetError


@pytest.fixture(scope="module")
def drawn():
    generators = (np.random.default_rng([0, 0, index]) for index in range(600))
    return [draw_scene(rng, 128, scenes.PLAIN_AND_STRIPED) for rng in generators]


def test_counts_and_sizes_are_distributed_as_said(drawn):
    """See the module's docstring."""
    counts = np.array([len(objects) for _, objects in drawn])
    assert 0 < (counts == 0).mean() < 0.03 and counts.max() == scenes.MAX_OBJECTS
    assert abs(counts.mean() - 4.3) < 0.4
    # A geometric distribution: its standard deviation is nearly its mean.
    assert 0.7 < counts.std() / counts.mean() < 1.1
    sides = np.array([np.sqrt(w * h) for _, objects in drawn for _, (_, _, w, h) in objects])
    # The quartiles of the log-normal above MIN_SIDE; covering a part makes a box smaller.
    assert np.percentile(sides, [25, 50, 75]) == pytest.approx([12.5, 22.4, 41], rel=0.1)
    assert 4 < sides.min() < 7 and sides.max() > 90


def test_boxes_enclose_what_is_visible(drawn):
    overlapping = 0
    for canvas, objects in drawn[:100]:
        assert canvas.shape == (128, 128, 3) and canvas.min() >= 0 and canvas.max() <= 255
        for name, (x, y, w, h) in objects:
            assert name in scenes.PLAIN_AND_STRIPED
            assert 0 <= x < x + w <= 128 and 0 <= y < y + h <= 128
        boxes = np.array([box for _, box in objects]).reshape(-1, 4)
        corner, far = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        common = np.minimum(far[:, None], far) - np.maximum(corner[:, None], corner)
        overlapping += ((common > 0).all(axis=2).sum() - len(boxes)) / 2
    assert overlapping > 50


def test_shapes_of_which_too_little_is_visible_are_no_objects():
    def painted(least: float) -> list:
        return paint_shapes(
            np.random.default_rng(5),
            np.full((96, 96, 3), 128.0, np.float32),
            names=scenes.PLAIN_AND_STRIPED,
            sides=[40] * 8,
            max_overlap=1.0,
            min_visible=least,
        )

    everything, half, whole = painted(0.0), painted(0.5), painted(0.999)
    assert 8 >= len(everything) > len(half) > len(whole) >= 1
    assert all(one in everything for one in half) and all(one in half for one in whole)
    # The last one lies on top.
    assert whole[-1] == everything[-1]


def test_scenes_are_written_as_a_dataset_and_reused(tmp_path):
    options = {"image_size": 64, "num_train": 5, "num_val": 3}
    write_scenes(tmp_path / "scenes", **options)
    file = tmp_path / "scenes/annotations/train.json"
    written = file.read_bytes()
    dataset = load_coco("scenes", str(file), str(tmp_path / "scenes/train"))
    assert dataset.class_names == scenes.PLAIN_AND_STRIPED and len(dataset.records) == 5
    write_scenes(tmp_path / "scenes", **options)
    assert file.read_bytes() == written
    with pytest.raises(DatasetError, match="is not the shapes dataset asked for"):
        write_scenes(tmp_path / "scenes", **{**options, "num_val": 4})


VOC = "<annotation>{}</annotation>"
BOX = (
    "<object><name>Tree</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with the four photographs' names, for pip to get; small files of one content."""
    path = tmp_path / "made_up-1.0-py3-none-any.whl"
    photograph = np.random.default_rng(0).integers(0, 256, (400, 1100, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "photograph.png")
    # In two tiles of the left part; on the border of the parts; on the right border.
    boxes = [(110, 20, 150, 60), (850, 220, 900, 240), (1000, 300, 1100, 400)]
    with zipfile.ZipFile(path, "w") as file:
        for name in tree_crowns.PHOTOGRAPHS:
            file.write(tmp_path / "photograph.png", f"deepforest/data/{name}.png")
            content = VOC.format("".join(BOX.format(*box) for box in boxes))
            file.writestr(f"deepforest/data/{name}.xml", content)
        file.writestr(
            "made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made_up\nVersion: 1.0\n"
        )
        file.writestr("made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        file.writestr("made_up-1.0.dist-info/RECORD", "")
    monkeypatch.setattr(tree_crowns, "WHEEL", str(path))
    return photograph


def test_photographs_are_cut_into_tiles_of_two_parts(wheel, tmp_path):
    root = tmp_path / "crowns"
    tree_crowns.write_tree_crowns(root)
    contents = {
        s: json.loads((root / f"annotations/{s}.json").read_text()) for s in ("train", "val")
    }
    # Left of 880: 7 columns of tiles in 3 rows; right of it: 1 column.
    numbers = {split: len(content["images"]) for split, content in contents.items()}
    assert numbers == {"train": 4 * 7 * 3, "val": 4 * 3}
    first = contents["train"]["images"][0]
    with Image.open(root / "train" / first["file_name"]) as tile:
        assert (np.asarray(tile) == wheel[:200, :200]).all()
    found = {
        split: [a["bbox"] for a in content["annotations"]] for split, content in contents.items()
    }
    # The first box is in two tiles. Of the second 0.4 are in the right part, of the third 0.8.
    assert found["train"] == 4 * [[110, 20, 40, 40], [10, 20, 40, 40]]
    assert found["val"] == 4 * [[0, 120, 20, 20], [0, 20, 20, 20], [120, 100, 80, 100]]
    # A second call uses what is there.
    (root / "val" / contents["val"]["images"][0]["file_name"]).unlink()
    tree_crowns.write_tree_crowns(root)
    assert len(list((root / "val").glob("*.png"))) == numbers["val"] - 1


def test_what_pip_cannot_get_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_crowns, "WHEEL", str(tmp_path / "none-1.0-py3-none-any.whl"))
    with pytest.raises(DatasetError, match="pip cannot get the photographs.*none-1.0"):
        tree_crowns.write_tree_crowns(tmp_path / "crowns")
    assert not (tmp_path / "crowns").exists()
