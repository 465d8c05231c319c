"""tools/export_model.py and the example that runs its files, as users run them."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distinct_detector import distinct_detector
from PIL import Image

from smca.checkpoints import write_checkpoint
from smca.data.mapper import resized_shape
from smca.inference.predictor import Predictor

ROOT = Path(__file__).parents[2]
TOOL = "tools/export_model.py"
EXAMPLE = ROOT / "examples/run_exported.py"
pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")

FASTER_RCNN = str(ROOT / "configs/baselines/faster_rcnn_FPN_R50_36ep.yaml")
NAMES = ("circle", "rectangle", "triangle")


def run(program, *arguments, prelude=""):
    """Run a program as one without this repository's package would."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = f"import runpy, sys\n{prelude}\nsys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(program), *map(str, arguments)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )


def without(*packages):
    """Code that makes these packages impossible to import."""
    return f"sys.modules.update(dict.fromkeys({packages!r}))"


OURS = ("smca", "fvcore", "torchvision", "detectron2")


@pytest.fixture
def trained(config_file, tiny_config, shapes, tmp_path):
    """``(config file, checkpoint, image)``."""
    small = ("MODEL.SMCA.IN_FEATURES", ["res5"], "MODEL.SMCA.NUM_SCALES", 1)
    small += ("MODEL.SMCA.ENCODER.BLOCKS", ["intra"], "MODEL.SMCA.DECODER.NUM_LAYERS", 1)
    detector = distinct_detector(tiny_config(*small))
    content = {"model": detector.state_dict(), "class_names": list(NAMES)}
    write_checkpoint(content, tmp_path / "model.pth")
    image = Image.open(sorted(Path(shapes["val"][1]).iterdir())[0]).convert("RGB")
    image.resize((90, 64)).save(tmp_path / "image.png")
    file = config_file(*small, "INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 120)
    return file, tmp_path / "model.pth", tmp_path / "image.png"


@pytest.mark.slow
def test_the_tool_and_the_example(trained, program, tmp_path):
    """Every format, exported by the command line, prints what the predictor finds."""
    config_file, weights, image = trained
    arguments = ("--config-file", config_file, "--weights", weights)
    predictor = Predictor(config_file, weights)
    threshold = predictor(str(image)).scores[3:5].mean().item()
    expected = predictor(str(image), threshold=threshold)
    assert len(expected) == 4
    for suffix, unneeded in (("onnx", "torch"), ("pt2", "onnxruntime"), ("ts", "onnxruntime")):
        file = tmp_path / f"model.{suffix}"
        printed = program(TOOL, *arguments, "--output", file).done()
        assert printed.count("checked on") == 3, printed
        options = ("--threshold", threshold, "--output", tmp_path / "found.png")
        process = run(EXAMPLE, file, image, *options, prelude=without(*OURS, unneeded))
        assert process.returncode == 0, process.stderr
        lines = [line.split() for line in process.stdout.splitlines()]
        assert [line[0] for line in lines] == list(expected.class_names)
        sides = torch.tensor([[float(side) for side in line[2:]] for line in lines])
        size = torch.tensor([90.0, 64, 90, 64])
        boxes = expected.boxes.clamp(min=0).minimum(size)
        torch.testing.assert_close(sides, boxes, rtol=0, atol=0.1)
        drawn = np.asarray(Image.open(tmp_path / "found.png"))
        assert np.any(drawn != np.asarray(Image.open(image)))
    ended = program(TOOL, *arguments, "--output", file)
    assert ended.returncode == 2 and "Traceback" not in ended.output, ended.output
    assert ended.last == f"ExportError: {file} exists; give --overwrite to replace it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "model.pth"], "end it in .onnx or .pt2 or .ts"),
        (["--output", "nowhere/model.onnx"], "give a path in a folder"),
        (["--output", __file__, "--format", "onnx"], "exists; give --overwrite"),
        (["--output", "model.onnx", "--size", "0", "64"], "must be at least 1 pixel"),
        (["--output", "model.onnx", "--opset", "17"], "--opset is 17; .* at least 18"),
        (["--output", "model.pt2", "--opset", "20"], "it is for ONNX"),
        (
            ["--output", "model.onnx", "--config-file", FASTER_RCNN],
            "own GeneralizedRCNN; Detectron2",
        ),
    ],
)
def test_the_tool_refuses_what_cannot_work(arguments, message, program):
    files = ["--config-file", "no.yaml", "--weights", "no.pth"]
    ended = program(TOOL, *files, *arguments)
    assert ended.returncode == 2
    assert re.search(f"ExportError: .*{message}", ended.last), ended.output


def test_the_example_resizes_as_models_are_tested():
    model_size = runpy.run_path(str(EXAMPLE))["model_size"]
    facts = {"size": None, "min_size": 80, "max_size": 133}
    for height in range(1, 200, 3):
        for width in range(1, 200):
            expected = resized_shape(height, width, 80, 133)
            assert model_size(width, height, facts) == expected[::-1], (height, width)
    assert model_size(7, 9, {**facts, "min_size": 0}) == (7, 9)
    assert model_size(7, 9, {**facts, "size": [3, 4]}) == (4, 3)
