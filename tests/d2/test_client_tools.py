"""Detectron2's own tools run the project's configs. Its wheel has most of them, as `tools`."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

detectron2 = pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import defaults, get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from lazy_configs import FOLDER, TINY  # noqa: E402

import smca.d2  # noqa: E402

BESIDE = Path(detectron2.__file__).parents[1] / "tools"
TOOLS = Path(os.getenv("DETECTRON2_TOOLS", BESIDE))
if not (TOOLS / "train_net.py").exists():
    pytest.skip(
        "set DETECTRON2_TOOLS to the tools/ of a Detectron2 checkout", allow_module_level=True
    )

TEXT = (Path(__file__).parents[2] / "docs" / "DETECTRON2.md").read_text()
PROGRAM = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]


@pytest.fixture
def run(loggers, monkeypatch):
    """``run("train_net.py", "--config-file", ...)``: the documentation's program runs a tool."""
    monkeypatch.setattr(defaults, "_C", defaults._C.clone())

    def start(tool, *arguments):
        if not (TOOLS / tool).exists():
            pytest.skip(f"set DETECTRON2_TOOLS to the tools/ of a checkout, for {tool}")
        monkeypatch.setenv("TOOL", str(TOOLS / tool))
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        exec(PROGRAM, {"__name__": "__main__"})

    return start


@pytest.mark.parametrize("tool", ["train_net.py", "plain_train_net.py"])
def test_training_and_evaluation(tool, run, config_file, tmp_path, capfd):
    file = config_file("SOLVER.MAX_ITER", 4, "SOLVER.STEPS", ())
    run(tool, "--config-file", file)
    weights = tmp_path / "out" / "model_final.pth"
    state = torch.load(weights, weights_only=True)
    optimizer = (
        state["optimizer"] if "optimizer" in state else state["trainer"]["_trainer"]["optimizer"]
    )
    assert "betas" in optimizer["param_groups"][0]
    capfd.readouterr()
    run(tool, "--eval-only", "--config-file", file, "MODEL.WEIGHTS", weights)
    assert "Average Precision" in capfd.readouterr().out


def test_analysis(run, config_file, capfd):
    options = ["--config-file", config_file(), "--num-inputs", 1, "--tasks"]
    # "parameter" builds the model first, which registers COCO_FORMAT; "flop" reads the data first.
    run("analyze_model.py", *options, "parameter", "flop")
    out = "".join(capfd.readouterr())
    assert "decoder.layers.0" in out and "Total GFlops" in out


def test_lazy_training_and_evaluation(run, theirs, tmp_path, capfd):
    changes = [*TINY, "dataloader.train.num_workers=0", f"train.output_dir={tmp_path}"]
    changes += ["dataloader.train.dataset.names=theirs_train"]
    changes += ["dataloader.test.dataset.names=theirs_val"]
    run("lazyconfig_train_net.py", "--config-file", FOLDER / "quickstart.py", *changes)
    weights = f"train.init_checkpoint={tmp_path}/model_final.pth"
    capfd.readouterr()
    options = ["--eval-only", "--config-file", FOLDER / "quickstart.py"]
    run("lazyconfig_train_net.py", *options, *changes, weights)
    assert "'AP-circle': " in capfd.readouterr().out


def test_torchscript(run, config_file, shapes, tmp_path):
    pytest.importorskip("cv2", reason="the tool imports it")
    torch.manual_seed(0)
    cfg = get_cfg()
    smca.d2.add_smca_config(cfg)
    cfg.merge_from_file(config_file())
    model = build_model(cfg).eval()
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    image = sorted(Path(shapes["val"][1]).glob("*.png"))[0]
    options = ["--config-file", config_file(), "--output", tmp_path, "--sample-image", image]
    run("deploy/export_model.py", *options, "MODEL.WEIGHTS", tmp_path / "weights.pth")
    exported = torch.jit.load(tmp_path / "model.ts")
    pixels = torch.randint(0, 256, (3, 64, 64)).float()
    with torch.no_grad():
        expected = model([{"image": pixels}])[0]["instances"]
        boxes, labels, scores, _ = exported(pixels)
    assert_close(boxes, expected.pred_boxes.tensor)
    assert_close(scores, expected.scores)
    assert_close(labels, expected.pred_classes)


def test_pictures(run, config_file, theirs, tmp_path):
    pytest.importorskip("cv2", reason="the tools import it")
    out = tmp_path / "pictures"
    options = ["--config-file", config_file(), "--output-dir", out, "--source", "annotation"]
    run("visualize_data.py", *options, "DATASETS.TRAIN", "('theirs_train',)")
    assert len(list(out.glob("*.png"))) == 12
    found = [{"image_id": 1, "category_id": 1, "bbox": [3, 4, 20, 20], "score": 0.9}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    options = ["--input", tmp_path / "found.json", "--output", out / "results"]
    run("visualize_json_results.py", *options, "--dataset", "theirs_val")
    assert len(list((out / "results").glob("*.png"))) == 6
