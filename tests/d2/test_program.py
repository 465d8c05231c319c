"""train_net.py as users run it, on Detectron2."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

EXACT = ["MODEL.RESNETS.NORM", "FrozenBN", "TEST.EVAL_PERIOD", 3]


def metrics(folder):
    """The values of `metrics.json` by iteration; a later line counts."""
    merged = {}
    for line in (Path(folder) / "metrics.json").read_text().splitlines():
        values = json.loads(line)
        merged.setdefault(values.pop("iteration"), {}).update(values)
    return merged


def losses(values):
    return {name: value for name, value in values.items() if "loss" in name}


@pytest.fixture(scope="module")
def trained():
    return {}


@pytest.fixture
def one_process(trained, config_file, train_net, tmp_path_factory):
    """Folder and output of one run, which the first test that asks for it makes."""
    if not trained:
        folder = tmp_path_factory.mktemp("one_process")
        file = config_file(*EXACT, "OUTPUT_DIR", str(folder))
        trained["output"] = train_net("--engine", "detectron2", "--config-file", file)
        trained["folder"] = folder
    return trained


def test_training_leaves_all_files(one_process):
    folder = one_process["folder"]
    names = {path.name for path in folder.iterdir()}
    checkpoints = {"model_0000001.pth", "model_0000003.pth", "model_0000005.pth"}
    expected = checkpoints | {"model_final.pth", "model_best.pth", "last_checkpoint"}
    expected |= {"config.yaml", "log.txt", "metrics.json", "inference"}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    by_iteration = metrics(folder)
    assert {"total_loss", "loss_class", "loss_l1_0", "lr", "data_time"} <= set(by_iteration[5])
    assert all("bbox/AP" in by_iteration[evaluated] for evaluated in (2, 6))
    results = json.loads((folder / "inference/coco_instances_results.json").read_text())
    assert len(results) == 6 * 30
    assert "Engine: detectron2" in one_process["output"]
    assert "FutureWarning" not in one_process["output"]


def test_evaluation_only(one_process, config_file, train_net):
    file = config_file(*EXACT)
    weights = ["MODEL.WEIGHTS", one_process["folder"] / "model_final.pth"]
    output = train_net("--config-file", file, "--eval-only", *weights)
    expected = metrics(one_process["folder"])[6]
    printed = [line for line in output.splitlines() if "copypaste: " in line][-1].split()[-1]
    assert printed.split(",")[0] == f"{expected['bbox/AP']:.4f}"


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(one_process, config_file, train_net, tmp_path):
    file = config_file(*EXACT)
    train_net("--config-file", file, "--num-gpus", 2)
    expected, found = metrics(one_process["folder"])[5], metrics(tmp_path / "out")[5]
    assert losses(found) == pytest.approx(losses(expected), abs=1e-4)
    models = [
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (one_process["folder"], tmp_path / "out")
    ]
    torch.testing.assert_close(*models, rtol=0, atol=1e-4)


def wait_for(process, condition):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.printed()[-5000:]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_signals_and_crashes_lose_nothing(config_file, train_net, tmp_path):
    common = [
        *("SOLVER.MAX_ITER", 100, "SOLVER.CHECKPOINT_PERIOD", 20, "DATALOADER.NUM_WORKERS", 1),
        *("MODEL.SMCA.DROPOUT", 0.1, "INPUT.MIN_SIZE_TRAIN", (64, 96)),
    ]
    file = config_file(*common)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    uninterrupted = train_net("--config-file", file, "OUTPUT_DIR", whole, wait=False)
    again = ("--config-file", file, "--resume", "OUTPUT_DIR", parts)

    process = train_net(*again, wait=False)
    wait_for(process, (parts / "model_0000019.pth").exists)
    # To the whole group, as a terminal or a batch system does it: loader processes too.
    os.killpg(process.pid, signal.SIGTERM)
    output = process.printed()
    assert process.returncode == 143, output[-5000:]
    stopped = (parts / "last_checkpoint").read_text()
    assert "--resume continues from " + stopped in output
    assert "Traceback" not in output

    process = train_net(*again, wait=False)
    number = int(stopped[len("model_") : -len(".pth")])
    later = parts / f"model_{(number // 20 + 1) * 20 + 19:07d}.pth"
    wait_for(process, later.exists)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL

    train_net(*again)
    assert uninterrupted.wait(timeout=120) == 0
    assert losses(metrics(parts)[99]) == losses(metrics(whole)[99])
    found, expected = (
        torch.load(folder / "model_final.pth", weights_only=True) for folder in (parts, whole)
    )
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    states = [content["trainer"]["_trainer"]["optimizer"]["state"] for content in (found, expected)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.slow
def test_an_error_in_a_worker_process_is_its_own_message(config_file, train_net):
    file = config_file("MODEL.SMCA.NUM_CLASSES", 5)
    process = train_net("--config-file", file, "--num-gpus", 2, wait=False)
    output = process.printed()
    assert process.returncode == 2
    assert "DatasetError: MODEL.SMCA.NUM_CLASSES is 5, but dataset" in output.splitlines()[-1]
    assert "Traceback" not in output


PROJECT = """
import sys

from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
import smca.d2
from smca import add_smca_config

register_coco_instances("theirs", {}, *sys.argv[1:3])
cfg = get_cfg()
add_smca_config(cfg)
cfg.MODEL.META_ARCHITECTURE = "SMCA"
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.RESNETS.DEPTH = 18
cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
cfg.MODEL.SMCA.NUM_CLASSES = 3
cfg.MODEL.SMCA.HIDDEN_DIM = 32
cfg.INPUT.MIN_SIZE_TRAIN = (64,)
cfg.DATASETS.TRAIN = ("theirs",)
cfg.DATALOADER.NUM_WORKERS = 0
cfg.SOLVER.IMS_PER_BATCH = 2
cfg.SOLVER.BASE_LR = 1e-5
cfg.SOLVER.MAX_ITER = 2
cfg.SOLVER.STEPS = ()
cfg.OUTPUT_DIR = sys.argv[3]
DefaultTrainer(cfg).train()
"""


def test_another_project_reuses_the_model(shapes, train_net, tmp_path):
    script = tmp_path / "project.py"
    script.write_text(PROJECT)
    train_net(*shapes["train"], tmp_path / "out", script=script)
    assert "total_loss" in metrics(tmp_path / "out")[1]
    model = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    assert model["heads.class_head.weight"].shape == (3, 32)
