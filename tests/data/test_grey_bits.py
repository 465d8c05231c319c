"""Grey values of 9 to 16 bits: as bright as the same picture of 8 bits, or refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import smca
from smca.config import load_cfg
from smca.data.coco_format import SMCA_READER_REGISTRY
from smca.data.grey import count_grey_bits
from smca.data.images import read_rgb

# How the values of 8 bits are saved.
SAVED = {
    "8": np.uint8,
    "12": lambda v: v.astype(np.uint16) * 16,
    "16": lambda v: v * np.uint16(257),
}


def save(path, values):
    Image.fromarray(np.atleast_2d(np.array(values, dtype=np.uint16))).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("values", "bits", "shown"),
    [
        ([0, 256, 511], 0, [0, 128, 255]),
        ([0, 16, 4080], 0, [0, 1, 255]),
        ([0, 16, 4080], 12, [0, 1, 255]),
        ([0, 16, 4080], 16, [0, 0, 15]),
        ([0, 1, 255], 8, [0, 1, 255]),
        ([0, 9], 12, [0, 0]),
        ([0, 4096], 12, "run to 4096, .*GREY_BITS 12 white is 4095; set it to 13"),
        ([0, 256], 8, "run to 256, .*GREY_BITS 8 white is 255; set it to 9"),
        ([0, 255], 0, "does not tell what is white; .* or set INPUT.GREY_BITS 8 if 255 is white"),
    ],
)
def test_a_value_is_as_bright_as_the_bits_say(tmp_path, values, bits, shown):
    path = save(tmp_path / "a.png", values)
    if isinstance(shown, str):
        with pytest.raises(OSError, match=shown):
            read_rgb(path, bits)
    else:
        np.testing.assert_array_equal(np.asarray(read_rgb(path, bits))[0, :, 0], shown)


@pytest.fixture
def drawn(shapes, tmp_path):
    """``{"8": [name, annotation file, folder], ...}``: the drawn shapes in grey."""
    json_file, folder = shapes["val"]
    found = {name: [f"val{name}", json_file, str(tmp_path / name)] for name in SAVED}
    for name, save_as in SAVED.items():
        (tmp_path / name).mkdir()
        for file in Path(folder).iterdir():
            values = np.asarray(Image.open(file).convert("L")) | 1
            Image.fromarray(save_as(values)).save(tmp_path / name / file.name)
    return found


def test_the_bits_of_a_file_change_no_detection(train_net, drawn, config_file, engine, tmp_path):
    flags = ["--engine", engine, "--config-file", config_file()]
    sets = ["DATASETS.COCO_FORMAT", list(drawn.values())]
    out = tmp_path / "out"
    printed = train_net(*flags, *sets, "DATASETS.TRAIN", ("val12",), "DATASETS.TEST", ("val12",))
    assert f"INPUT.GREY_BITS: 12, as in {tmp_path}" in printed
    assert yaml.safe_load((out / "config.yaml").read_text())["INPUT"]["GREY_BITS"] == 12
    weights = ["MODEL.WEIGHTS", out / "model_final.pth"]
    found = []
    for name in drawn:
        folder = tmp_path / f"of{name}"
        test = ["DATASETS.TRAIN", (), "DATASETS.TEST", (f"val{name}",), "OUTPUT_DIR", folder]
        printed = train_net(*flags, "--eval-only", *sets, *test, *weights)
        assert ("INPUT.GREY_BITS" in printed) == (name != "8")
        (results,) = (folder / "inference").glob("*results.json")
        found.append(json.loads(results.read_text()))
    assert found[0] == found[1] == found[2] != []


def test_a_predictor_and_the_demo_see_what_the_run_saw(
    train_net, program, drawn, config_file, tmp_path
):
    sets = ["DATASETS.COCO_FORMAT", [drawn["12"]], "DATASETS.TRAIN", ("val12",)]
    train_net("--engine", "native", "--config-file", config_file(), *sets, "DATASETS.TEST", ())
    run = tmp_path / "out/config.yaml"
    predictor = smca.Predictor(str(run))
    dark = save(tmp_path / "dark.png", [[1600] * 400] * 9)
    _, _, (seen,) = predictor.inputs(dark)
    assert (seen == 100).all()
    bright = save(tmp_path / "bright.png", [0, 4096])
    with pytest.raises(OSError, match=r"bright\.png cannot be read .* set it to 13"):
        predictor(bright)
    flags = ["--engine", "native", "--config-file", run, "--output", tmp_path / "demo"]
    ended = program("demo.py", *flags, "--threshold", 1, "--input", dark, bright)
    assert ended.returncode == 1 and "skipped" in ended.output and "set it to 13" in ended.output
    with Image.open(tmp_path / "demo/dark.png") as picture:
        assert picture.convert("L").getextrema() == (100, 100)


def config(*datasets):
    sets = [["a", str(json_file), str(folder)] for json_file, folder in datasets]
    return load_cfg(smca.get_cfg(), opts=["DATASETS.COCO_FORMAT", sets, "DATASETS.TRAIN", ("a",)])


@pytest.mark.parametrize("first", [True, False])
def test_the_brightest_value_of_a_sample_counts(tmp_path, first, monkeypatch):
    for number, value in enumerate([300, 5000, 9000, 200, 70]):
        save(tmp_path / f'"ü{number}.png', [0, value])
    names = [f'"ü{number}.png' for number in range(6)]  # the last one is missing
    parts = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"bbox": [1, 2, 3, 4]}] * 50_000,
    }
    json_file = tmp_path / "a.json"
    order = sorted(parts, reverse=first)
    json_file.write_text(json.dumps({name: parts[name] for name in order}))
    bits, source = count_grey_bits(config((json_file, tmp_path)))
    assert bits == 14 and "ü2.png of dataset 'a', up to 9000" in source
    with monkeypatch.context() as patch:  # it is large and not read as a whole
        patch.setattr(json, "load", None)
        assert count_grey_bits(config((json_file, tmp_path)))[0] == 14

    content = {"images": [{"id": 1, "file_name": names[1], "height": 1, "width": 2}]}
    with monkeypatch.context() as patch:
        patch.setitem(SMCA_READER_REGISTRY._obj_map, "mine", lambda path: content)
        assert count_grey_bits(config((f"mine:{json_file}", tmp_path)))[0] == 13


def test_what_holds_no_such_values_has_no_bits(tmp_path, shapes):
    assert count_grey_bits(config(shapes["train"])) == (0, "")
    save(tmp_path / "a.png", [0, 255])
    for text in ('{"images": [{"file_name": "a.png"}]}', '"file_name": "\\u12"', "", "[1"):
        (tmp_path / "a.json").write_text(text)
        assert count_grey_bits(config((tmp_path / "a.json", tmp_path))) == (0, "")
    assert count_grey_bits(config((tmp_path / "none.json", tmp_path))) == (0, "")
