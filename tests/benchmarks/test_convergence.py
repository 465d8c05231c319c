"""The race, run for a few iterations of a tiny model as a user runs it."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import convergence as program
import pytest
from convergence_races import RACES, SYSTEMS, TITLES
from convergence_results import Run, add_results, read_results
from PIL import Image
from scenes import write_scenes

from smca.analysis.runs import read_metrics

ROOT = Path(__file__).parents[2]
CHOSEN = ("smca-independent", "detr")
TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.SMCA.HIDDEN_DIM", 16, "MODEL.SMCA.NHEADS", 2),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 16, "MODEL.SMCA.NUM_QUERIES", 5),
    *("MODEL.SMCA.DECODER.NUM_LAYERS", 1, "DATALOADER.NUM_WORKERS", 0),
]
ORIGIN = {"commit": "c", "machine": "m", "software": "s"}


@pytest.fixture
def race(start_program, tmp_path):
    """``race("--flag", ..., opts=[...], wait=True)`` starts the program in a folder of its own."""

    def start(*flags, kind="scenes", opts=(), wait=True):
        folders = ("--output", tmp_path / "out", "--data", tmp_path / "data")
        process = start_program(
            *(kind, *folders, "--images", 8, 4, "--systems", *CHOSEN, "--seeds", 0, *flags),
            *("--opts", *TINY, *opts),
            script=ROOT / "benchmarks/convergence.py",
        )
        return process.done() if wait else process

    start.output = tmp_path / "out"
    return start


def precision(output: Path, system: str) -> list[int]:
    file = output / system / "seed0/metrics.json"
    return read_metrics(file).get("bbox/AP", ([], []))[0] if file.exists() else []


@pytest.mark.slow
def test_a_race_leaves_its_results_and_is_not_run_twice(race):
    budget = ("--iterations", 4, "--eval-period", 2)
    printed = race(*budget)
    results = race.output / "convergence_scenes.csv"
    with results.open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["system"], row["seed"], row["iteration"]) for row in rows]
    assert found == [(system, "0", number) for system in CHOSEN for number in ("2", "4")]
    assert all(row["commit"] and "CPU cores" in row["machine"] for row in rows)
    assert all("torch" in row["software"] for row in rows)
    text = (race.output / "report.md").read_text()
    for said in ("| AP after iterations | 2 | 4 |", "| DETR |", "| SMCA, independent |"):
        assert said in text and said in printed
    with Image.open(race.output / "report.png") as picture:
        assert picture.size[0] > 500
    kept = {path.name for path in (race.output / "detr/seed0").glob("*.pth")}
    assert kept == {"model_best.pth", "model_final.pth"}

    before = results.read_bytes()
    assert race(*budget).count("done before") == 2
    assert results.read_bytes() == before
    other = race(*budget, opts=["SOLVER.BASE_LR", 0.1], wait=False)
    assert "holds a race of another recipe (SOLVER.BASE_LR differ)" in other.printed()
    assert other.returncode == 2


@pytest.mark.slow
def test_costs_are_measured_beside_the_results(race):
    printed = race("--iterations", 4, "--costs")
    assert "Nothing has been finished yet." in printed and not (race.output / "detr").exists()
    with (race.output / "convergence_scenes_costs.csv").open() as file:
        smca, detr = csv.DictReader(file)
    assert (smca["system"], detr["system"], detr["time"]) == (*CHOSEN, "1.0000")
    # The Gaussians of SMCA are further channels of attention, and two small layers.
    assert 1 < float(smca["multiply_adds"]) / float(detr["multiply_adds"]) < 1.05
    assert 0.5 < float(smca["time"]) < 2


@pytest.mark.slow
def test_the_medium_race_draws_twenty_classes_and_trains(race):
    race("--iterations", 2, kind="medium", opts=["SOLVER.IMS_PER_BATCH", 2])
    for system in CHOSEN:
        assert precision(race.output, system)[-1] == 1
    content = json.loads((race.output.parent / "data/annotations/train.json").read_text())
    assert len(content["categories"]) == 20 and content["images"][0]["width"] == 512


@pytest.mark.slow
def test_a_killed_race_goes_on_where_it_was(race):
    """Stopped, and killed later."""
    budget = ("--iterations", 60, "--eval-period", 10)
    for evaluations, number in ((1, signal.SIGTERM), (3, signal.SIGKILL)):
        process = race(*budget, wait=False)
        until = time.monotonic() + 120
        while len(precision(race.output, CHOSEN[0])) < evaluations:
            assert process.poll() is None and time.monotonic() < until, process.printed()
            time.sleep(0.1)
        if number == signal.SIGTERM:
            process.send_signal(number)
            process.printed()
            assert process.returncode == 128 + number
        else:
            os.killpg(process.pid, number)
            process.wait()
        assert len(precision(race.output, CHOSEN[0])) < 6
        assert not (race.output / "convergence_scenes.csv").exists()
    race(*budget)
    for system in CHOSEN:
        assert precision(race.output, system) == [9, 19, 29, 39, 49, 59]
    runs = read_results(race.output / "convergence_scenes.csv")
    assert [list(run.evaluations) for run in runs] == [[10, 20, 30, 40, 50, 60]] * 2
    log = (race.output / CHOSEN[0] / "seed0/log.txt").read_text()
    starts = [line.split()[-3] for line in log.splitlines() if "training from iteration" in line]
    assert len(starts) == 3 and starts[0] == "0" and 9 <= int(starts[1]) < int(starts[2])


@pytest.mark.parametrize("kind", RACES)
def test_the_systems_differ_from_the_recipe_in_nothing_but_themselves(tmp_path, kind):
    from smca import get_cfg
    from smca.config import flatten, load_cfg
    from smca.modeling import build_detector

    args = program.parse([kind, "--output", str(tmp_path), "--data", str(tmp_path / "data")])
    recipe = flatten(load_cfg(get_cfg(), program.config_file(kind)))
    configs = program.chosen_configs(args)
    assert list(configs) == list(RACES[kind].seeds)
    models = set()
    for system, cfg in configs.items():
        changed = {key: value for key, value in flatten(cfg).items() if value != recipe[key]}
        length = RACES[kind].iterations[system]
        solver = cfg.SOLVER
        assert (solver.MAX_ITER, tuple(solver.STEPS)) == (length, (length * 4 // 5,))
        assert cfg.TEST.EVAL_PERIOD == solver.CHECKPOINT_PERIOD == length // 40
        folder, seed = tmp_path / system, RACES[kind].seeds[system][-1]
        assert seed == cfg.SEED and str(folder / f"seed{seed}") == cfg.OUTPUT_DIR
        keys = {key for key in changed if key.startswith("MODEL.")}
        assert keys == set(SYSTEMS[system][1][::2])
        assert {key.partition(".")[0] for key in set(changed) - keys} <= {
            *("OUTPUT_DIR", "SEED", "SOLVER", "TEST", "DATASETS"),
        }
        assert build_detector(cfg)
        models.add((length, *(f"{key} {changed[key]}" for key in sorted(keys))))
    assert len(models) == len(configs)


def test_other_recipes_leave_the_results_of_the_project_alone(capsys):
    with pytest.raises(SystemExit):
        program.parse(["scenes", "--iterations", "5", "--opts", "SOLVER.BASE_LR", "1"])
    assert "--iterations, --opts: name a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.parse(["photographs", "--output", "other", "--images", "5", "5"])
    assert "photographs are not drawn" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.parse(["scenes", "--costs", "--systems", "smca-fixed"])
    assert "add detr to --systems" in capsys.readouterr().err


def test_a_dry_run_prints_what_is_left(monkeypatch, capsys, tmp_path):
    flags = ["scenes", "--output", str(tmp_path), "--dry-run", "--systems", "detr", "smca-fixed"]
    add_results(program.parse(flags).results, Run("detr", 0, {5: {"AP": 1.5}}, {}), ORIGIN)
    monkeypatch.setattr("sys.argv", ["convergence.py", *flags, "--seeds", "0"])
    assert program.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "smca-fixed/seed0" in line and "--resume" in line


def test_a_run_is_held_by_one_program(tmp_path):
    held = program.lock(tmp_path / "run")
    assert program.lock(tmp_path / "run") is None
    os.close(held)
    os.close(program.lock(tmp_path / "run"))


def test_the_docs_get_the_part_between_the_marks(monkeypatch, tmp_path):
    page = tmp_path / "docs/CONVERGENCE.md"
    page.parent.mkdir()
    marks = "<!-- scenes: begin -->\nold\n<!-- scenes: end -->\n"
    page.write_text(f"before\n{marks}after\n")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    write_scenes(tmp_path / "data", image_size=64, num_train=1, num_val=5)
    args = program.parse(["scenes", "--data", str(tmp_path / "data")])
    add_results(args.results, Run("detr", 0, {5: {"AP": 1.5}}, {}), ORIGIN)
    program.write_docs(args)
    text = page.read_text()
    assert text.startswith("before\n<!-- scenes: begin -->\n![AP over") and "old" not in text
    assert text.endswith("<!-- scenes: end -->\nafter\n") and "| DETR | **1.5** |" in text
    pictures = {path.name for path in page.parent.glob("*[gp]")}
    assert pictures == {"convergence.png", "convergence_scenes.png", "convergence_scenes_data.jpg"}
    with Image.open(page.with_name("convergence_scenes_data.jpg")) as picture:
        assert picture.size == (4 * 384 + 3 * 8, 384)
    page.write_text("nothing")
    with pytest.raises(program.ConfigError, match="lacks the lines <!-- scenes: begin -->"):
        program.write_docs(args)


def test_the_committed_results_are_whole():
    """Every run of the project's own results has ended, and belongs to its race."""
    for kind, race in RACES.items():
        for run in read_results(program.RESULTS / f"convergence_{kind}.csv"):
            assert run.seed in race.seeds[run.system] and run.system in TITLES
            assert max(run.evaluations) == race.iterations[run.system]
            assert len(run.evaluations) == 40
