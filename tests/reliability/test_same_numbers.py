"""A seed gives the same numbers, bit by bit, on one machine with one number of threads (CPU)."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import ENGINES
from torch.testing import assert_close

import smca
from smca.config import load_cfg
from smca.engine.prepare import prepare
from smca.native.trainer import Trainer

ROOT = Path(__file__).parents[2]
RANDOM = [
    *("MODEL.SMCA.DROPOUT", 0.1, "MODEL.SMCA.ATTENTION_DROPOUT", 0.1),
    *("INPUT.MIN_SIZE_TRAIN", (64, 96), "TEST.PER_CLASS_AP", True),
]
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}
# What should not matter. The locale of the native host cannot write the names of the classes.
ELSEWHERE = {"PYTHONHASHSEED": "5", "TZ": "Asia/Kolkata", "LC_ALL": "C"}
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def greek_shapes(shapes, tmp_path_factory):
    """The drawn shapes, with names that not every locale can write."""
    folder, named = tmp_path_factory.mktemp("greek"), []
    for split, (annotations, images) in shapes.items():
        content = json.loads(Path(annotations).read_text())
        for category, name in zip(
            content["categories"], ("κύκλος", "Rhomb ◇", "三角"), strict=True
        ):
            category["name"] = name
        file = folder / f"{split}.json"
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        named.append([split, str(file), str(images)])
    return ["DATASETS.COCO_FORMAT", named]


@pytest.fixture
def run(config_file, greek_shapes, train_net, monkeypatch, tmp_path):
    """``run(engine, "folder", "KEY", value, ...)``: trains there; what it printed.

    The folder is the working directory, and OUTPUT_DIR is ``out`` in it. Variables of the
    environment (``NAME="value"``) make it a process of its own, which has them.
    """

    def start(engine, name, *opts, **environment):
        folder = tmp_path / name
        folder.mkdir()
        arguments = ["--engine", engine, "--config-file", config_file(*RANDOM, *greek_shapes)]
        arguments += ["OUTPUT_DIR", "out", *map(str, opts)]
        if not environment:
            monkeypatch.chdir(folder)
            return train_net(*arguments)
        paths = filter(None, [str(ROOT / "projects" / "SMCA"), os.getenv("PYTHONPATH")])
        done = subprocess.run(
            [sys.executable, str(ROOT / "train_net.py"), *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    return start


def numbers(folder):
    """Weights and all that training keeps, metrics, and detections as text; no times."""
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    del checkpoint["trainer"]["clock"]
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    metrics = [{k: repr(v) for k, v in line.items() if k not in TIMES} for line in lines]
    assert len(metrics) >= 2
    return checkpoint, metrics, (folder / "inference/coco_instances_results.json").read_text()


def assert_same(folder, other):
    (found, *texts), (expected, *others) = numbers(folder), numbers(other)
    assert texts == others
    assert found["class_names"] == expected["class_names"]
    assert found["trainer"]["seed"] == expected["trainer"]["seed"]
    assert_close(found["model"], expected["model"], rtol=0, atol=0)
    states = [content["trainer"]["_trainer"]["optimizer"]["state"] for content in (found, expected)]
    assert_close(*states, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_drawn_seed_repeats_the_run_elsewhere(engine, run, tmp_path):
    """Another folder, environment, number of loader processes."""
    first = run(engine, "first", "SEED", -1)
    (seed,) = re.findall(r"SEED (\d+) repeats this run", first)
    assert torch.load(tmp_path / "first/out/model_final.pth")["trainer"]["seed"] == int(seed)
    surroundings = ELSEWHERE | (ASCII if engine == "native" else {})
    again = run(engine, "again", "SEED", seed, "DATALOADER.NUM_WORKERS", 2, **surroundings)
    assert "Logging error" not in again
    assert_same(tmp_path / "again/out", tmp_path / "first/out")
    assert "AP-κύκλος" in (tmp_path / "again/out/log.txt").read_text("utf-8") or engine != "native"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_mixed_precision_repeats_itself(engine, run, tmp_path):
    amp = ("SOLVER.AMP.ENABLED", True, "SEED", 7, "DATALOADER.NUM_WORKERS")
    run(engine, "first", *amp, 0)
    run(engine, "again", *amp, 1)
    assert_same(tmp_path / "again/out", tmp_path / "first/out")


FAMILIES = {
    "multi": [],
    "single": ["MODEL.SMCA.NUM_SCALES", 1, "MODEL.SMCA.IN_FEATURES", ["res5"]],
    "detr": ["MODEL.SMCA.DECODER.NAME", "DETRDecoder", "MODEL.SMCA.LOSS.CLASSIFICATION", "softmax"],
    "anchored": [
        *("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.TWO_STAGE", True),
        *("MODEL.SMCA.ONE_TO_MANY.ENABLED", True),
    ],
    "conditional": ["MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"],
    "deformable": [
        *("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder", "MODEL.SMCA.NECK.NORM", "GN"),
        *("MODEL.SMCA.DECODER.NAME", "DeformableDecoder", "MODEL.SMCA.DEFORMABLE.REFINE", True),
    ],
    "depthwise": [
        *("MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder", "MODEL.SMCA.NUM_SCALES", 4),
        *("MODEL.SMCA.IN_FEATURES", ["res3", "res4", "res5"]),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_repeats_itself(family, config_file, tmp_path):
    """Also where torch refuses whatever it knows to differ, and fills fresh memory with NaN."""
    file = config_file(*RANDOM, "MODEL.EMA.ENABLED", True, *FAMILIES[family])

    def train(name, seed):
        torch.manual_seed(len(name)), random.seed(len(name)), np.random.seed(len(name))
        opts = ["OUTPUT_DIR", str(tmp_path / name), "SEED", seed]
        trainer = Trainer(prepare(load_cfg(smca.get_cfg(), file, opts)))
        trainer.resume_or_load(resume=False)
        trainer.train()
        return tmp_path / name

    first = train("first", 1)
    torch.use_deterministic_algorithms(True)
    try:
        again = train("once again", 1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(again, first)
    other = train("other", 2)
    assert numbers(other)[2] != numbers(first)[2]
    weights = [numbers(folder)[0]["model"] for folder in (first, other)]
    assert not torch.equal(*(model["neck.projections.0.weight"] for model in weights))
