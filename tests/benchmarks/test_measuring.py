"""The arithmetic of timing, targets and tables, on calls that are watched here."""

import json
import sys
from pathlib import Path

import measuring
import pytest
import torch

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_functions_interleave():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measuring.interleave(functions, device=CPU, rounds=3, warm_up=2)
    assert "".join(calls) == "aabb" + "ab" * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_a_round_repeats_what_is_fast_and_takes_the_mean(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    def wait():
        now[0] += 0.01

    times = measuring.interleave(
        {"wait": wait}, device=CPU, rounds=2, warm_up=1, least_seconds=0.05
    )
    assert now[0] == pytest.approx(0.11)
    assert times["wait"] == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize("calls", [0, 2, 3])
def test_what_has_no_room_is_left_out(calls):
    """In the warm-up, or later beside what others keep."""
    left = iter(range(calls))

    def greedy():
        if next(left, None) is None:
            raise torch.OutOfMemoryError

    times = measuring.interleave({"greedy": greedy, "lean": lambda: None}, device=CPU, rounds=2)
    assert list(times) == ["lean"]
    assert measuring.ratio(times, "greedy", "lean") is None


def test_median_quartiles_and_ratio():
    assert measuring.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == measuring.Timing(3.0, 2.0, 4.0)
    assert measuring.summary([4.0]) == measuring.Timing(4.0, 4.0, 4.0)
    # A round that was slow for both does not count.
    times = {"a": [2.0, 40.0, 2.0], "b": [1.0, 20.0, 2.0]}
    assert measuring.ratio(times, "a", "b") == 2.0
    assert measuring.quotient(3, 2) == 1.5 and measuring.quotient(None, 2) is None


@pytest.mark.parametrize(
    ("value", "at_least", "line"),
    [
        (0.5, False, "pass  time: 0.5 (at most 0.88)"),
        (0.9, False, "FAIL  time: 0.9 (at most 0.88)"),
        (0.9, True, "pass  time: 0.9 (at least 0.88)"),
        (None, False, "FAIL  time: not measured (at most 0.88)"),
    ],
)
def test_targets(value, at_least, line):
    assert str(measuring.PerformanceTarget("time", value, 0.88, at_least)) == line


def test_what_was_measured_is_written_with_its_origin(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["anywhere/try.py", "--rounds", "2"])
    timing = measuring.Timing(median=0.25, low=0.2, high=0.5)
    rows = [
        {"name": "first", "seconds": timing},
        {"peak": 1234567.0},
        {"name": "second", "seconds": None},
    ]
    output = tmp_path / "new/try.json"
    measuring.write("try", rows, output, targets=[measuring.PerformanceTarget("time", 1.0, 2.0)])
    assert capsys.readouterr().out.splitlines() == [
        "  name         seconds",
        " first  0.25 (0.2-0.5)",
        "second               -",
        "",
        "     peak",
        "1.235e+06",
        "",
        "pass  time: 1 (at most 2)",
        str(output),
    ]
    record = json.loads(output.read_text())
    assert record["command"] == "`python benchmarks/try.py --rounds 2`"
    assert f"{torch.get_num_threads()} threads" in record["machine"]
    assert torch.__version__ in record["software"] and record["commit"]
    assert record["rows"][0]["seconds"] == {"median": 0.25, "low": 0.2, "high": 0.5}
    assert record["bars"] == [
        {"name": "time", "value": 1.0, "limit": 2.0, "at_least": False, "passed": True}
    ]
    assert [path.name for path in output.parent.iterdir()] == ["try.json"]
