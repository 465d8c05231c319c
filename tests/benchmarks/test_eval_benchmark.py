"""The evaluation's benchmark with a few images."""

from importlib.util import find_spec
from itertools import product

import eval as program
import eval_workload
import pytest

HOSTS = ["native", *(["detectron2"] if find_spec("detectron2") else [])]
STAGES = ["all", "read", "write", "score", "other"]


@pytest.mark.slow
def test_stages_make_up_the_whole_and_evaluations_agree(measured):
    tiny = ("--images", 4, "--boxes", 20, "--classes", 3, "--rounds", 2)
    _, record = measured(program, *tiny)
    rows = record["rows"]
    found = [(row["evaluation"], row["stage"]) for row in rows]
    assert found == list(product(["plain", *HOSTS], STAGES))
    assert all(row["plain_over"] == 1 for row in rows[: len(STAGES)])
    for begin in range(0, len(rows), len(STAGES)):
        whole, *stages = rows[begin : begin + len(STAGES)]
        assert whole["share"] == 1 and whole["peak_mib"] > 0 and whole["plain_over"] > 0
        assert sum(row["share"] for row in stages) == pytest.approx(1)
        assert all(row["seconds"]["low"] > 0 for row in stages)
        assert whole["error"] < 1e-9 and 5 < whole["AP"] < 95


def test_detections_are_a_function_of_the_case(tmp_path):
    first, second = (
        eval_workload.made_up(eval_workload.Case(6, 30, 5, str(folder)))
        for folder in (tmp_path / "a", tmp_path / "b")
        if folder.mkdir() is None
    )
    assert first[0].records[0]["annotations"] == second[0].records[0]["annotations"]
    assert len(first[1]) == 6
    for (image_id, found), (same_id, same) in zip(first[1], second[1], strict=True):
        assert image_id == same_id and len(found.scores) == 30
        assert found.boxes.equal(same.boxes) and found.labels.equal(same.labels)
        assert found.scores.equal(found.scores.sort(descending=True).values)


def test_a_stage_inside_another_is_not_counted_twice(monkeypatch):
    now = [0.0]

    def dumps(*_):
        now[0] += 1

    def dump(*_):
        now[0] += 1
        program.json.dumps()

    monkeypatch.setattr(program.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(program.json, "dumps", dumps)
    monkeypatch.setattr(program.json, "dump", dump)
    with program.stages() as seconds:
        program.json.dump()
    assert seconds == {"read": 0, "write": 2, "score": 0}
    assert program.json.dump is dump
