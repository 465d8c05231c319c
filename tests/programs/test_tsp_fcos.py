"""TSP-FCOS as its users run it, in each host."""

import json
import re
from pathlib import Path

import pytest
import torch

import smca
from smca.checkpoints import read_checkpoint

TSP = [
    *("MODEL.META_ARCHITECTURE", "TSPFCOS", "MODEL.SMCA.QUERY_GROUPS", 1),
    *("MODEL.SMCA.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.SMCA.PRE_NORM", True),
    *("MODEL.SMCA.TSP.PYRAMID_DIM", 16, "MODEL.SMCA.TSP.NUM_FEATURES", 60),
    *("MODEL.SMCA.DROPOUT", 0.1, "MODEL.SMCA.NUM_CLASSES", 0),
    *("SOLVER.OPTIMIZER", "SGD+AdamW", "SOLVER.BASE_LR", 0.01),
    *("SOLVER.ENCODER_MULTIPLIER", 0.05, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01),
]


@pytest.fixture
def file(config_file):
    return lambda *opts: config_file(*TSP, *opts)


def weights(folder):
    return read_checkpoint(folder / "model_final.pth")["model"]


def test_a_resumed_run_is_exact(engine, file, train_net, tmp_path):
    run = "--engine", engine, "--config-file", file("DATALOADER.NUM_WORKERS", 1)
    train_net(*run)
    out = tmp_path / "out"
    whole = weights(out)
    for line in (out / "metrics.json").read_text().splitlines():
        logged = json.loads(line)
        if "loss_local" in logged:
            break
    assert {"loss_class", "loss_giou", "loss_centerness", "grad_norm"} <= logged.keys()
    assert logged["lr_encoder"] == pytest.approx(0.05 * logged["lr"])
    optimizer = torch.load(out / "model_final.pth", weights_only=True)["trainer"]["_trainer"]
    groups = optimizer["optimizer"]["param_groups"]
    assert ["momentum" in group for group in groups] == ["betas" not in group for group in groups]
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text("model_0000003.pth")
    train_net(*run, "--resume")
    resumed = weights(out)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_what_was_trained_is_used(engine, file, train_net, program, tmp_path, shapes):
    path = file("MODEL.SMCA.TSP.NMS_THRESH", 0.5)
    train_net("--engine", engine, "--config-file", path)
    out = tmp_path / "out"
    printed = train_net("--engine", engine, "--config-file", path, "--eval-only")
    scored = re.search(r"val: (AP .*?) +AR ", printed)[1]
    assert scored in train_net("--engine", "native", "--config-file", path, "--eval-only")
    image = min(Path(shapes["val"][1]).glob("*.png"))
    result = smca.Predictor(str(out / "config.yaml"), engine=engine)(str(image))
    assert 0 < len(result.boxes) <= 100
    assert result.boxes.min() >= 0 and result.boxes.max() <= 64
    config = "--config-file", out / "config.yaml", "--output", tmp_path / "drawn"
    drawn = program("demo.py", *config, "--input", image)
    assert drawn.returncode == 0, drawn.output
    refused = program("tools/visualize_attention.py", *config, "--image", image)
    assert refused.returncode and "'TSPFCOS', which has no decoder" in refused.last


def test_its_classes_are_taken_by_name(engine, file, train_net, tmp_path):
    """Both its classifiers, of places and of tokens."""
    train_net("--engine", engine, "--config-file", file())
    start = tmp_path / "start.pth"
    (tmp_path / "out" / "model_final.pth").rename(start)
    content = torch.load(start, weights_only=True)
    content["class_names"] = list(reversed(content["class_names"]))
    torch.save(content, start)
    path = file(
        *("SOLVER.BASE_LR", 1e-12, "SOLVER.WEIGHT_DECAY", 0.0),
        *("MODEL.WEIGHTS", str(start), "OUTPUT_DIR", str(tmp_path / "two")),
    )
    printed = train_net("--engine", engine, "--config-file", path)
    assert "class head taken by name" in printed
    trained, tuned = content["model"], weights(tmp_path / "two")
    for name in ("heads.class_head.weight", "towers.class_head.weight"):
        torch.testing.assert_close(tuned[name], trained[name].flip(0), atol=1e-6, rtol=0)


def test_processes_on_a_cpu_have_norms_of_their_own(file, start_program, tmp_path):
    run = start_program("--engine", "native", "--num-gpus", 2, "--config-file", file())
    output = run.done()
    assert output.count("SyncBN needs GPUs") == 1
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())


@pytest.mark.slow
def test_it_exports_without_nms(file, train_net, program, tmp_path):
    train_net("--engine", "native", "--config-file", file())
    export = ["tools/export_model.py", "--config-file", tmp_path / "out" / "config.yaml"]
    for name in ("model.onnx", "model.ts", "model.pt2"):
        to = [*export, "--output", tmp_path / name, "--size", 64, 96]
        refused = program(*to)
        assert refused.returncode and "MODEL.SMCA.TSP.NMS_THRESH is 0.6" in refused.last
        done = program(*to, "MODEL.SMCA.TSP.NMS_THRESH", 1.0)
        assert "checked on 3 of 64x96" in done.done()
