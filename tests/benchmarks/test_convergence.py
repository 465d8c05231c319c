"""The race, run for a few iterations of a tiny model as a user runs it."""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import convergence as program
import pytest
from PIL import Image

from smca.analysis.runs import read_metrics
from smca.config import ConfigError

ROOT = Path(__file__).parents[2]
SYSTEMS = ("smca-independent", "detr")
TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.SMCA.HIDDEN_DIM", 16, "MODEL.SMCA.NHEADS", 2),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 16, "MODEL.SMCA.NUM_QUERIES", 5),
    *("MODEL.SMCA.DECODER.NUM_LAYERS", 1, "DATALOADER.NUM_WORKERS", 0),
]


@pytest.fixture
def race(start_program, tmp_path):
    """``race("--flag", ..., opts=[...], wait=True)`` starts the program in a folder of its own."""

    def start(*flags, opts=(), wait=True):
        folders = ("--output", tmp_path / "out", "--data", tmp_path / "data")
        process = start_program(
            *(*folders, "--images", 8, 4, "--systems", *SYSTEMS, *flags, "--opts", *TINY, *opts),
            script=ROOT / "benchmarks/convergence.py",
        )
        return process.done() if wait else process

    start.output = tmp_path / "out"
    return start


def precision(output: Path, system: str) -> list[int]:
    return read_metrics(output / system / "seed0/metrics.json").get("bbox/AP", ([], []))[0]


@pytest.mark.slow
def test_a_race_leaves_its_report_and_is_not_run_twice(race):
    budget = ("--iterations", 4, "--eval-period", 2)
    printed = race(*budget)
    with (race.output / "convergence.csv").open() as file:
        rows = [(row["system"], row["seed"], row["iteration"]) for row in csv.DictReader(file)]
    assert rows == [(system, "0", number) for system in SYSTEMS for number in ("2", "4")]
    text = (race.output / "convergence.md").read_text()
    for said in ("| AP after iterations | 2 | 4 |", "| DETR |", "| SMCA, independent |"):
        assert said in text and said in printed
    assert "- command: `python benchmarks/convergence.py --size small --seeds 0 --sys" in text
    with Image.open(race.output / "convergence.png") as picture:
        assert picture.size[0] > 500
    kept = {path.name for path in (race.output / "detr/seed0").glob("*.pth")}
    assert kept == {"model_best.pth", "model_final.pth"}

    records = [race.output / system / "seed0/metrics.json" for system in SYSTEMS]
    before = [path.read_bytes() for path in records]
    assert race(*budget).count("done before") == 2
    assert [path.read_bytes() for path in records] == before
    other = race(*budget, opts=["SOLVER.BASE_LR", 0.1], wait=False)
    assert "holds a race of another recipe (SOLVER.BASE_LR differ)" in other.printed()
    assert other.returncode == 2


@pytest.mark.slow
def test_the_medium_race_draws_twenty_classes_and_trains(race):
    race("--size", "medium", "--iterations", 2, opts=["SOLVER.IMS_PER_BATCH", 2])
    for system in SYSTEMS:
        assert precision(race.output, system) == [1]
    content = json.loads((race.output.parent / "data/annotations/train.json").read_text())
    assert len(content["categories"]) == 20 and content["images"][0]["width"] == 512
    assert min(item["area"] for item in content["annotations"]) < 20**2


@pytest.mark.slow
def test_a_killed_race_goes_on_where_it_was(race):
    """Stopped, and killed later."""
    budget = ("--iterations", 60, "--eval-period", 10)
    for evaluations, number in ((1, signal.SIGTERM), (3, signal.SIGKILL)):
        process = race(*budget, wait=False)
        until = time.monotonic() + 120
        while len(precision_so_far(race.output)) < evaluations:
            assert process.poll() is None and time.monotonic() < until, process.printed()
            time.sleep(0.1)
        if number == signal.SIGTERM:
            process.send_signal(number)
            process.printed()
            assert process.returncode == 128 + number
        else:
            os.killpg(process.pid, number)
            process.wait()
        assert len(precision(race.output, SYSTEMS[0])) < 6
    race(*budget)
    for system in SYSTEMS:
        assert precision(race.output, system) == [9, 19, 29, 39, 49, 59]
    log = (race.output / SYSTEMS[0] / "seed0/log.txt").read_text()
    starts = [line.split()[-3] for line in log.splitlines() if "training from iteration" in line]
    assert len(starts) == 3 and starts[0] == "0" and 9 <= int(starts[1]) < int(starts[2])


def precision_so_far(output: Path) -> list[int]:
    file = output / SYSTEMS[0] / "seed0/metrics.json"
    return precision(output, SYSTEMS[0]) if file.exists() else []


@pytest.mark.parametrize("size", ["small", "medium"])
def test_the_systems_differ_from_the_recipe_in_nothing_but_themselves(monkeypatch, tmp_path, size):
    from smca import get_cfg
    from smca.config import flatten, load_cfg, validate
    from smca.modeling import build_detector

    monkeypatch.setattr(sys, "argv", ["convergence.py", "--size", size, "--output", str(tmp_path)])
    args = program.parse()
    recipe = flatten(load_cfg(get_cfg(), str(ROOT / program.config_file(size))))
    models = set()
    for system in program.SYSTEMS:
        arguments = program.command(args, system, seed=7)
        at = arguments.index("--resume") + 1
        cfg = load_cfg(get_cfg(), str(ROOT / arguments[3]), arguments[at:])
        validate(cfg)
        changed = {key: value for key, value in flatten(cfg).items() if value != recipe[key]}
        assert changed.pop("SEED") == 7
        assert changed.pop("OUTPUT_DIR") == str(tmp_path / system / "seed7")
        assert len(changed) <= 1
        assert all(key.startswith("MODEL.SMCA.") for key in changed)
        detector = build_detector(cfg)
        models.add((type(detector.decoder), sum(p.numel() for p in detector.parameters())))
    assert len(models) == len(program.SYSTEMS)


def test_a_folder_is_held_by_one_race(tmp_path):
    held = program.lock(tmp_path)
    with pytest.raises(ConfigError, match="another race is at work"):
        program.lock(tmp_path)
    os.close(held)
    os.close(program.lock(tmp_path))


def test_the_docs_get_the_part_between_the_marks(monkeypatch, tmp_path):
    page = tmp_path / "docs/CONVERGENCE.md"
    page.parent.mkdir()
    marks = "<!-- small: begin -->\nold\n<!-- small: end -->\n"
    page.write_text(f"before\n{marks}after\n")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--output", str(tmp_path / "out")])
    program.write_docs(program.parse(), 10)
    text = page.read_text()
    assert text.startswith("before\n<!-- small: begin -->\n![") and "old" not in text
    assert text.endswith("<!-- small: end -->\nafter\n")
    assert (tmp_path / "docs/convergence_small.png").exists()
    page.write_text("nothing")
    with pytest.raises(ConfigError, match="lacks the lines <!-- small: begin -->"):
        program.write_docs(program.parse(), 10)
