"""Images that EXIF turns, annotated as they are stored: what is said, and that it helps."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_checks import findings
from dataset_checks.checks import check_dataset
from smca.data.coco import load_coco
from smca.data.images import read_record

TEXT = (Path(__file__).parents[2] / "docs/CUSTOM_DATA.md").read_text()
(LINES,) = re.findall(r"^```python\n((?:(?!^```).)*0x0112.*?)^```$", TEXT, flags=re.M | re.S)
BOX = [3, 7, 21, 11]


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """``photo(orientation)``: a dataset of one image, with a white BOX of the image as stored."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("my_data/images")

    def save(orientation, size=(48, 32), name="a.png"):
        width, height = size
        pixels = np.zeros((height, width, 3), np.uint8)
        x, y, w, h = BOX
        pixels[y : y + h, x : x + w] = 255
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(f"my_data/images/{name}", exif=exif)
        content = {
            "images": [{"id": 5, "file_name": name, "width": width, "height": height}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"image_id": 5, "category_id": 1, "bbox": BOX}],
        }
        Path("my_data/train.json").write_text(json.dumps(content))
        return load("train")

    return save


def load(part):
    (record,) = load_coco("mine", f"my_data/{part}.json", "my_data/images").records
    return record


def white(image):
    """The box that holds all that is white."""
    ys, xs = np.nonzero(np.asarray(image)[..., 0])
    return [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("size", [(48, 32), (40, 40)])
@pytest.mark.parametrize("orientation", range(10))
def test_the_documents_lines_turn_boxes_as_exif_turns_images(photo, orientation, size, name):
    photo(orientation, size, name)
    exec(LINES, {})
    record = load("train_turned")
    assert white(read_record(record)) == record["annotations"][0]["bbox"]
    # Entries that have the turned image's size already stay as they are.
    if size[0] != size[1] and orientation in range(5, 9):
        before = Path("my_data/train_turned.json").read_text()
        Path("my_data/train.json").write_text(before)
        exec(LINES, {})
        assert Path("my_data/train_turned.json").read_text() == before


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_error_tells_where_the_boxes_are(photo, orientation):
    record = photo(orientation)
    with pytest.raises(OSError, match="its annotation says 48x32; EXIF turns it") as error:
        read_record(record)
    formula = re.search(r"of the stored one is (\[.*?\]);", str(error.value))[1]
    named = dict(zip("xywh", BOX, strict=True))
    assert eval(formula, named) == white(read_record({**record, "width": 32, "height": 48}))


def test_an_image_of_another_size_is_not_blamed_on_exif(photo):
    record = photo(6) | {"width": 47}
    with pytest.raises(OSError, match="says 47x32; correct 'width' and 'height'"):
        read_record(record)


def test_both_hosts_say_so(photo, train_net, program, config_file, engine):
    photo(6)
    sets = [["mine", "my_data/train.json", "my_data/images"]]
    flags = ["--engine", engine, "--config-file", config_file(), "DATASETS.COCO_FORMAT", sets]
    changes = ["DATASETS.TRAIN", ("mine",), "DATASETS.TEST", (), "MODEL.SMCA.NUM_CLASSES", 0]
    ended = program("train_net.py", *flags, *changes)
    assert ended.returncode == 2
    assert "a.png is 32x48 pixels, its annotation says 48x32; EXIF turns it" in ended.output
    exec(LINES, {})
    sets[0][1] = "my_data/train_turned.json"
    train_net(*flags, *changes, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_checker_lists_them(photo, orientation, verify):
    for size in ((48, 32), (40, 40)):
        photo(orientation, size)
        paths = "my_data/train.json", "my_data/images"
        checked = check_dataset("mine", *paths, num_queries=9, verify=verify)
        expected = {findings.TURNED: [f"a.png (orientation {orientation})"]}
        if orientation > 4 and size == (48, 32):
            expected[findings.STORED] = ["a.png (32x48, not 48x32)"]
        assert checked.findings == expected and len(checked.turned) == 1
