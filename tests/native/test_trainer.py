"""Training in this process: the moving average over a resume, pictures, what lines are read for."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms import v2

import smca
from smca.checkpoints import SafeCheckpointing
from smca.config import load_cfg
from smca.engine.iterations import Iterations
from smca.engine.prepare import prepare
from smca.modeling import build_detector
from smca.native.metrics import Metrics
from smca.native.trainer import Trainer
from smca.training.solver import build_optimizer

RANDOM = ["MODEL.SMCA.DROPOUT", 0.1, "INPUT.MIN_SIZE_TRAIN", (64, 96)]
AVERAGE = ["MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", 0.3]


@pytest.fixture
def train(config_file, tmp_path):
    """``train("folder", "KEY", value, ...)``: trains there and returns the trainer."""

    def run(folder, *opts, resume=False, kind=Trainer):
        output = ["OUTPUT_DIR", str(tmp_path / folder)]
        cfg = prepare(load_cfg(smca.get_cfg(), config_file(*RANDOM, *opts), output))
        trainer = kind(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    return run


def checkpoint(folder, name="model_final"):
    return torch.load(Path(folder) / f"{name}.pth", weights_only=True)


def test_a_resumed_average_is_that_of_an_uninterrupted_run(train, tmp_path):
    train("whole", *AVERAGE)
    whole = checkpoint(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts/last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "parts/model_final.pth").unlink()
    resumed = train("parts", *AVERAGE, resume=True)
    parts = checkpoint(tmp_path / "parts")
    for key in ("model", "ema"):
        assert_close(parts[key], whole[key], rtol=0, atol=0)
    assert whole["ema"].keys() == whole["model"].keys()
    assert resumed.iterations.clock.iterations == 6
    name = "neck.projections.0.weight"
    assert not torch.equal(whole["ema"][name], whole["model"][name])


def test_a_trainer_of_your_own_changes_the_augmentations(train):
    class Dark(Trainer):
        def build_mapper(self):
            mapper = super().build_mapper()
            mapper.augmentations.append(v2.ColorJitter(brightness=(0, 0)))
            return mapper

    for kind, is_dark in ((Trainer, False), (Dark, True)):
        batch = train(kind.__name__, kind=kind).iterations.batch
        assert all((sample.image.max() == 0) == is_dark for sample in batch)


def test_pictures_change_nothing(train, tmp_path):
    train("without")
    train("with", "VIS_PERIOD", 2)
    found, expected = (checkpoint(tmp_path / name) for name in ("with", "without"))
    assert_close(found["model"], expected["model"], rtol=0, atol=0)
    states = [content["trainer"]["_trainer"]["optimizer"]["state"] for content in (found, expected)]
    assert_close(*states, rtol=0, atol=0)


def test_an_average_may_begin_in_a_run_that_had_none(train, tmp_path):
    train("run", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())
    first = checkpoint(tmp_path / "run")
    trainer = train("run", "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (), *AVERAGE, resume=True)
    content = checkpoint(tmp_path / "run")
    # Iteration 2: (1 + 2) / (10 + 2) of what the first run has left.
    for name, _ in trainer.detector.named_parameters():
        expected = 0.25 * first["model"][name] + 0.75 * content["model"][name]
        assert_close(content["ema"][name], expected, rtol=1e-4, atol=1e-6)


def test_a_new_run_from_an_average_starts_with_it(train, tmp_path):
    train("first", *AVERAGE)
    weights = ["MODEL.WEIGHTS", str(tmp_path / "first/model_final.pth")]
    # With no learning rate to speak of, weights and average stay what they start with.
    short = ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "SOLVER.BASE_LR", 1e-30]
    train("second", *AVERAGE, *weights, *short)
    expected = checkpoint(tmp_path / "first")["ema"]
    for key in ("model", "ema"):
        found = checkpoint(tmp_path / "second")[key]
        name = "neck.projections.0.weight"
        assert_close(found[name], expected[name], rtol=0, atol=1e-6)


def test_the_norm_is_read_for_lines_alone(tiny_config, tmp_path):
    cfg = tiny_config("SOLVER.IMS_PER_BATCH", 8)
    detector = build_detector(cfg)
    optimizer = build_optimizer(cfg, detector)
    iterations = Iterations(cfg, detector, optimizer, SafeCheckpointing(detector), seed=0)
    iterations.num_images = 80
    read = []

    def recorded(iteration):
        read.append(iteration)
        return iterations.scalars(iteration)

    metrics = Metrics(str(tmp_path), max_iter=45, scalars=recorded)
    names = ("total_loss", "loss_class", "loss_l1", "loss_giou", "data_time", "time")
    for iteration in range(45):
        metrics.add(iteration, dict.fromkeys(names, iteration))
    metrics.close()
    assert read == [19, 39, 44]
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == read
    assert [line["epoch"] for line in lines] == pytest.approx([2, 4, 4.5])
    assert [line["total_loss"] for line in lines] == pytest.approx([9.5, 29.5, 42])
