"""The arithmetic of the long run's benchmark, and a run of a few iterations."""

import csv
import json
from pathlib import Path

import long_run as program
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="only Linux reports footprints"
)


def samples(program, **grown):
    """A hundred samples, one each 10 iterations; ``grown`` by name: more in the second half."""
    usual = {"resident": 2**30, "total": 2**29, "files": 20, "shared": 9, "threads": 4}
    found = []
    for number in range(100):
        # Every tenth one is of an evaluation.
        more = grown if number >= 50 else {}
        held = {name: value + more.get(name, 0) for name, value in usual.items()}
        evaluating = number % 10 == 9
        held |= {"resident": 2 * held["resident"]} if evaluating else {}
        processes = 3 + 2 * evaluating + more.get("processes", 0)
        footprint = program.Footprint(**held, processes=processes)
        found.append(program.Sample(seconds=number, iteration=10 * number + 10, held=footprint))
    return found


def targets_kept(program, found):
    rows = program.windows(program.training_samples(found), warm_up=100, window=200, count=3)
    assert [row["after"] for row in rows] == [100, 445, 790]
    found = program.targets("x", rows[0], rows[-1])
    return {target.name.partition(": ")[2]: target.passed for target in found}


def test_an_evaluation_is_no_growth():
    assert all(targets_kept(program, samples(program)).values())


@pytest.mark.parametrize(
    ("grown", "failed"),
    [
        ({"resident": 2**30 // 40}, "resident, growth"),
        ({"total": 2**29 // 40}, "total, growth"),
        ({"files": 1}, "files, more"),
        ({"threads": 1}, "threads, more"),
        ({"shared": 1}, "shared, more than the most"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_growth_is_found(grown, failed):
    passed = targets_kept(program, samples(program, **grown))
    assert [name for name in passed if not passed[name]] == [failed]


def test_a_line_that_is_being_written_does_not_count(tmp_path):
    metrics = tmp_path / "metrics.json"
    assert program.iterations_done(metrics) == 0
    metrics.write_text('{"iteration": 19}\n{"iteration": 3')
    assert program.iterations_done(metrics) == 20
    metrics.write_text("".join(f'{{"iteration": {i}, "x": "{"x" * 99}"}}\n' for i in range(400)))
    assert program.iterations_done(metrics) == 400


@pytest.mark.slow
def test_a_run_is_watched(start_program, config_file, tmp_path):
    output = tmp_path / "long_run.json"
    flags = ("--config-file", config_file("TEST.EVAL_PERIOD", 50), "--engines", "native")
    short = ("--warm-up", 0, "--window", 40, "--rows", 2, "--interval", 0.2)
    changes = ("--opts", "SOLVER.MAX_ITER", 80, "DATALOADER.NUM_WORKERS", 1)
    process = start_program(
        *flags,
        *short,
        "--output",
        output,
        *changes,
        script=ROOT / "benchmarks/long_run.py",
    )
    printed = process.printed()
    assert output.exists(), printed
    record = json.loads(output.read_text())
    # So short a run may well grow.
    assert process.returncode == (0 if all(bar["passed"] for bar in record["bars"]) else 1), printed
    first, last = record["rows"]
    assert first["after"] == 0 and last["after"] in (20, 40)
    assert all(row["processes"] == 2 and row["files"] > 5 for row in record["rows"])
    assert all(200 < row["total"] < row["resident"] + 500 for row in record["rows"])
    with output.with_suffix(".csv").open() as file:
        written = list(csv.DictReader(file))
    assert int(written[-1]["iteration"]) >= 60 and len(written) > 10
    assert output.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_that_fails_says_why(start_program, config_file, tmp_path):
    process = start_program(
        *("--config-file", config_file(), "--engines", "native", "--interval", 0.1),
        *("--output", tmp_path / "x.json", "--opts", "MODEL.SMCA.NHEADS", 5),
        script=ROOT / "benchmarks/long_run.py",
    )
    assert "MODEL.SMCA.NHEADS" in process.printed()
    assert process.returncode == 2 and not (tmp_path / "x.json").exists()
