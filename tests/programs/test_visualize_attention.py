"""tools/visualize_attention.py and tools/draw_run.py as users run them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from smca.modeling import build_detector

TOOL = "tools/visualize_attention.py"
ONE_SCALE = ("MODEL.SMCA.IN_FEATURES", ["res5"], "MODEL.SMCA.NUM_SCALES", 1)
DEFORMABLE = (
    *("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder"),
    *("MODEL.SMCA.DECODER.NAME", "DeformableDecoder"),
)


@pytest.fixture
def model(tiny_config, tmp_path):
    """``model(name, *opts)``: "CONFIG,WEIGHTS" of an untrained detector."""

    def write(name, *opts):
        torch.manual_seed(0)
        cfg = tiny_config(*opts)
        (tmp_path / f"{name}.yaml").write_text(cfg.dump())
        content = {
            "model": build_detector(cfg).state_dict(),
            "class_names": ["circle", "rectangle", "triangle"],
        }
        torch.save(content, tmp_path / f"{name}.pth")
        return f"{tmp_path / name}.yaml,{tmp_path / name}.pth"

    return write


@pytest.fixture
def image(shapes):
    folder = Path(shapes["val"][1])
    return folder / json.loads(Path(shapes["val"][0]).read_text())["images"][0]["file_name"]


def test_all_layers_of_one_model(model, image, program, tmp_path):
    config, weights = model("one").split(",")
    output = program(
        TOOL,
        *("--config-file", config, "--weights", weights, "--image", image),
        *("--layer", "all", "--detections", 2, "--output", tmp_path / "out"),
    ).done()
    stem = tmp_path / "out" / f"{image.stem}_attention"
    assert output.splitlines()[-2:] == [f"{stem}.png", f"{stem}.html"]
    page = Path(f"{stem}.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 2
    assert "http" not in page and str(image) in page and "1/16: 0." in page
    with Image.open(f"{stem}.png") as picture:
        assert picture.height > 1000


def test_several_models_show_the_same_object(model, image, program, tmp_path):
    fixed = model("fixed", "MODEL.SMCA.MODULATION.SCALE", "fixed")
    detr = model("detr", *ONE_SCALE, "MODEL.SMCA.DECODER.NAME", "DETRDecoder")
    names = {"fixed": fixed, "again": fixed, "DETR": detr}
    models = [part for name, files in names.items() for part in ("--model", f"{name}={files}")]
    code, _ = program(
        TOOL, *("--image", image, *models, "--query", 3, "--threshold", 0, "--output", tmp_path)
    )
    assert code == 0
    page = (tmp_path / f"{image.stem}_attention.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert all(name in page for name in names)
    # The first model's own query overlaps itself best.
    fixed, again = page.split("<tr>")[2:4]
    assert "<td>3</td>" in fixed and "<td>3</td>" in again
    assert "<td>1.000</td>" in again and "<td>1.000</td>" not in fixed


@pytest.mark.parametrize(
    ("opts", "arguments", "message"),
    [
        (DEFORMABLE, (), "'DeformableDecoder', which samples a few places"),
        ((), ("--layer", 2), "there is no decoder layer 2"),
        ((), ("--layer", "last"), "invalid layer value: 'last'"),
        ((), ("--class", "dog"), "the classes are circle, rectangle, triangle"),
        ((), ("--query", 10), "the queries are 0 to 9"),
        ((), ("--at", "900,900"), "the image has 64x64 pixels"),
        ((), ("--query", 1, "--class", "circle"), "--query is a choice by itself"),
        ((), ("--detections", 0), "it is at least 1"),
        ((), ("--model", "a=b"), "NAME=CONFIG,WEIGHTS"),
        ((), ("--model", "a=b,c"), "--config-file, or --model"),
        ((), ("--image", __file__), "cannot be read as an image"),
        ((), ("--image", "none.png"), "none.png"),
        ((), ("--weights", "none.pth"), "checkpoint 'none.pth' does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(opts, arguments, message, model, image, program):
    config, weights = model("one", *opts).split(",")
    run = ("--config-file", config, "--weights", weights, "--image", image)
    code, errors = program(TOOL, *run, *arguments)
    assert code == 2
    assert message in errors.splitlines()[-1]


def test_weights_that_are_not_finite_have_no_picture(model, image, program, tmp_path):
    config, weights = model("one").split(",")
    content = torch.load(weights)
    content["model"]["heads.class_head.bias"] += torch.nan
    torch.save(content, weights)
    code, errors = program(TOOL, "--config-file", config, "--weights", weights, "--image", image)
    assert code == 3
    assert "its weights are not finite" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("opts", "arguments", "message"),
    [
        ((), ("--images", 0), "--images and --queries are at least 1"),
        ((), ("--output", __file__), f"File exists: '{__file__}'"),
        (("DATASETS.TEST", ()), (), "DATASETS.TEST is empty"),
        (("DATASETS.COCO_FORMAT", [["val", "a.json", "."]]), (), "a.png cannot be read as an"),
    ],
)
def test_what_cannot_be_drawn_of_a_run(
    opts, arguments, message, model, program, config_file, tmp_path, monkeypatch
):
    _, weights = model("run").split(",")
    monkeypatch.chdir(tmp_path)
    names = [{"id": number, "name": name} for number, name in enumerate("abc")]
    image = {"id": 1, "file_name": "a.png", "width": 9, "height": 9}
    content = {"images": [image], "categories": names, "annotations": []}
    Path("a.json").write_text(json.dumps(content))
    Path("a.png").write_text("no image")
    run = ("--config-file", config_file(*opts), "--weights", weights, "--output", "pictures")
    code, errors = program("tools/draw_run.py", *run, *arguments)
    assert code == 2
    assert message in errors.splitlines()[-1]


def test_pictures_of_a_run(model, image, program, config_file, tmp_path):
    _, weights = model("run").split(",")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.json").write_text('{"iteration": 19, "bbox/AP": 12.5}\n')
    run = ("--config-file", config_file(), "--weights", weights, "--output", tmp_path / "pictures")
    code, output = program("tools/draw_run.py", *run, "--images", 2, "--threshold", 0)
    names = ("detections.png", "co_attention.png", "training.png")
    assert code == 0
    first, *lines = output.splitlines()
    assert first == f"Weights: {weights} (as named)"
    assert lines == [str(tmp_path / "pictures" / name) for name in names]
    sizes = [Image.open(line).size for line in lines]
    assert sizes[0] == (384 * 2 + 8, 384)  # small images are enlarged
    assert sizes[1][1] > 3 * 250  # three queries
    assert sizes[2][0] == 11 * 120  # inches and pixels an inch
