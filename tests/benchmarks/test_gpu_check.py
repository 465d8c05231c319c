"""The GPU check: tiny on a CPU, with stages that end badly, and with what cannot be run."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
# What the stages of these tests begin with: a row, and a process that would outlive them.
BEGIN = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from gpu_stages.record import Record
record = Record(Path(sys.argv[1]))
record.add({{"table": "pids", "of": [os.getpid(), subprocess.Popen(["sleep", "600"]).pid]}})
"""
STAGES = {
    "sleeps": "time.sleep(600)",
    "raises": "print('before'); raise RuntimeError('no such kernel')",
    "works": "record.end_stage(reason='no time for more')",
    "does not pass": "record.add({'table': 'limits', 'value': 2.0, 'passed': False})",
    "ends the program": "os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)",
}


@pytest.fixture
def program(monkeypatch):
    import gpu_check

    # The program sets both.
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the program heeds no SIGTERM"))
    yield gpu_check
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def call(program, monkeypatch, tmp_path):
    """``call("--flag", ...)``: the exit code; the program writes into tmp_path / "out"."""

    def call(*flags):
        argv = ["gpu_check.py", "--output", tmp_path / "out", *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        return program.guarded(program.main)

    return call


@pytest.fixture
def run(program, call, monkeypatch, tmp_path):
    """``run(facts="sleeps", ...)``: exit code and recorded runs, with stages of ``STAGES``."""

    def run(**stages):
        def command(args, name, limit):
            return [sys.executable, "-c", BEGIN + STAGES[stages[name]], str(args.output)]

        def limits(names, seconds, taken):
            return 2.0 if stages[names[taken]] == "sleeps" else 60.0

        monkeypatch.setattr(program, "command", command)
        monkeypatch.setattr(program, "limits", limits)
        code = call("--device", "cpu", "--stages", *stages)
        return code, json.loads((tmp_path / "out/gpu_check.json").read_text())

    return run


def assert_gone(stages):
    """The processes that each stage named have ended; Z: nobody has asked yet how."""
    pids = ",".join(str(pid) for stage in stages for pid in stage["rows"][0]["of"])
    until = time.monotonic() + 10
    while re.search(r"[^Z\s]", subprocess.getoutput(f"ps -o s= -p {pids}")):
        assert time.monotonic() < until


@pytest.mark.slow
def test_all_stages_tiny_on_a_cpu(program, tmp_path):
    # Much more time than they need, for a machine that does other work; printed is what they took.
    flags = ("--tiny", "--device", "cpu", "--minutes", "15", "--output", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects/SMCA"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "benchmarks/gpu_check.py", *flags]
    assert subprocess.run(command, env=environment, timeout=900).returncode == 0
    (run,) = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [stage["stage"] for stage in run["stages"]] == list(program.SHARES)
    timed = set()
    for stage in run["stages"]:
        assert (stage["status"], stage["reason"]) == ("done", ""), stage["stage"]
        assert stage["rows"] and stage["seconds"] < stage["limit"]
        for row in stage["rows"]:
            assert "error" not in row and row.get("passed", True) is True, row
            for timing in (value for value in row.values() if isinstance(value, dict)):
                assert 0 < timing["low"] <= timing["median"] <= timing["high"]
                timed.add(stage["stage"])
    assert timed == {"train", "ablation", "infer"}
    assert "--tiny --device cpu" in run["command"] and run["tiny"] is True
    assert "1 threads" in run["machine"] and torch.__version__ in run["software"]
    assert re.match("[0-9a-f]{10}|unknown", run["commit"])
    assert re.fullmatch("[0-9a-f]{12}", run["code"])


def test_stages_that_end_badly_are_lines_and_the_next_ones_run(run, capsys):
    code, (first,) = run(facts="sleeps", right="raises", train="does not pass", feed="works")
    assert code == 1
    assert [(each["stage"], each["status"], each["reason"]) for each in first["stages"]] == [
        ("facts", "cut off", "not done after 2 s"),
        ("right", "failed", "RuntimeError: no such kernel"),
        ("train", "done", ""),
        ("feed", "done", "no time for more"),
    ]
    assert_gone(first["stages"])
    failed = re.findall("^FAIL  .*", capsys.readouterr().out, re.M)
    assert len(failed) == 2 and "right" in failed[0] and "train" in failed[1]
    # Nothing has failed where a stage is cut off only; and older runs are kept.
    code, (kept, second) = run(facts="sleeps", feed="works")
    assert code == 0 and kept == first
    assert [stage["status"] for stage in second["stages"]] == ["cut off", "done"]


def test_sigterm_ends_what_runs_and_keeps_what_was_measured(run, call, tmp_path, capsys):
    code, (only,) = run(facts="works", right="ends the program", train="works")
    assert code == 128 + signal.SIGTERM
    assert [stage["status"] for stage in only["stages"]] == ["done", "stopped"]
    assert_gone(only["stages"])
    assert call("--report", tmp_path / "out/gpu_check.json") == 0
    assert "**stopped**" in capsys.readouterr().out


def test_time_that_a_stage_leaves_is_for_the_next_ones(program, monkeypatch):
    monkeypatch.setattr(program, "SHARES", {"facts": 20, "right": 60, "race": 20})
    stages = list(program.SHARES)
    assert program.limits(stages, 200, 0) == 40
    # facts has taken 4 seconds of 40.
    assert program.limits(stages, 196, 1) == 147 and program.limits(stages, 50, 2) == 50


def test_a_dry_run_prints_command_lines_and_writes_nothing(call, tmp_path, capsys):
    assert call("--dry-run", "--minutes", 1, "--stages", "facts,right", "feed,", "--tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["facts", "right", "feed"]
    assert all("--device cuda --tiny" in line for line in lines)
    seconds = [int(re.search(r", (\d+) s:", line)[1]) for line in lines]
    assert sum(seconds) == pytest.approx(60, abs=1) and list(tmp_path.iterdir()) == []


def test_what_cannot_be_run_is_one_message(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cases = {
        ("--stages", "facts", "rigth"): ["rigth", "there are facts, right"],
        (): ["cuda", "sees no GPU", f"torch {torch.__version__}", "--device cpu --tiny"],
        ("--device", "gpu"): ["'gpu'", "cuda:1, ... or cpu"],
        ("--minutes", "0"): ["--minutes is 0"],
        ("--report", tmp_path / "missing.json"): ["missing.json"],
        ("--report", __file__): [f"{__file__} is not a gpu_check.json"],
    }
    for flags, words in cases.items():
        assert call(*flags) == 2, flags
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert call("--device", "cuda:1") == 2 and "1 GPUs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[", "null", "[1]", '{"benchmark": "attention"}'])
def test_a_file_that_is_no_record_is_refused_and_left_alone(call, tmp_path, capsys, text):
    path = tmp_path / "gpu_check.json"
    path.write_text(text)
    for flags in (("--report", path), ("--output", tmp_path, "--device", "cpu", "--tiny")):
        assert call(*flags) == 2
        assert f"{path} is not a gpu_check.json" in capsys.readouterr().err
    assert path.read_text() == text


def test_the_docs_have_the_tables_of_the_results(program):
    """What ``--report benchmarks/results/*.json --docs`` writes."""
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    runs = [run for file in files for run in json.loads(file.read_text())]
    report = program.report
    page = report.PAGE.read_text().split(report.BEGIN)[1].split(report.END)[0]
    assert runs and page == f"{report.tables(runs)}\n"


def test_nothing_begins_when_time_is_over(program, call, monkeypatch, tmp_path):
    def work(stage):
        stage.attempt("speed", lambda: {"value": 1.0}, batch=2)
        stage.until = 0.0
        for table, case in {"speed": {"batch": 4, "precision": "bf16"}, "memory": {}}.items():
            stage.attempt(table, lambda: pytest.fail("it has begun"), **case)

    record = program.Record(tmp_path)
    record.begin_run()
    record.begin_stage("facts", 600.0)
    monkeypatch.setattr(program, "end_with_program", lambda: None)
    monkeypatch.setitem(sys.modules, "gpu_stages.facts", SimpleNamespace(run=work))
    flags = ("--work", "facts", "--limit", 600, "--device", "cpu", "--output", tmp_path)
    assert call(*flags) == 0
    (stage,) = record.runs()[-1]["stages"]
    assert stage["reason"] == "no time for speed 4 bf16; memory" and len(stage["rows"]) == 1
