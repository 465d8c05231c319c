"""What the stages of the GPU check share: measurements, tables, and attention beside float64."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smca.config import ConfigError
from smca.modeling import attention

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KINDS = ("independent", "single", "fixed", "shared", "oriented")


@pytest.fixture
def stages():
    """The package, with the modules that are tested here."""
    import gpu_stages
    from gpu_stages import check, exact, record, report, right  # noqa: F401

    return gpu_stages


@pytest.fixture
def check(stages, tmp_path):
    """What the stage that runs works with."""
    record = stages.record.Record(tmp_path)
    record.begin_run(machine="m", software="s")
    record.begin_stage("facts", 600.0)
    return stages.check.Check("cpu", tiny=True, record=record, limit=600.0)


@pytest.fixture
def compared(stages, check):
    """``compared(kind, precision, padded, dropout)``: the row of a small attention."""

    @functools.cache
    def numbers(kind, padded):
        found = stages.exact.Numbers(stages.exact.Case(kind, padded, (5, 7), 2, 9))
        return found, functools.cache(found.exact)

    return lambda kind, precision, padded, dropout: stages.right.compared(
        check, precision, *numbers(kind, padded), dropout=dropout
    )


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_a_measurement_that_fails_is_a_row(check, error):
    def fails():
        raise error("no room\nat all")

    check.attempt("speed", fails, batch=2)
    check.attempt("speed", lambda: iter([{"value": math.inf}, {"value": math.nan}]), batch=1)
    text = check.record.path.read_text()
    (run,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert run["stages"][0]["rows"] == [
        {"table": "speed", "batch": 2, "error": f"{error.__name__}: no room"},
        {"table": "speed", "batch": 1, "value": "inf"},
        {"table": "speed", "batch": 1, "value": "nan"},
    ]


def test_tables_are_of_all_runs_by_stage_and_mark_what_failed(stages):
    def run(machine, *rows):
        stage = {"stage": "train", "status": "done", "reason": "", "rows": list(rows)}
        return {"machine": machine, "software": "torch", "code": "c", "stages": [stage]}

    old = run("old", {"table": "limits", "value": 111.0, "passed": True})
    cut_off = {"status": "cut off", "reason": "too slow", "seconds": 3.0}
    old["stages"].append({"stage": "feed", "rows": [], **cut_off})
    failed = {"value": 222.0, "passed": False, "seconds": {"median": 2.0, "low": 1.0, "high": 3.0}}
    error = {"error": "RuntimeError: a | b", "peak": None}
    new = run("new", {"table": "limits", **failed}, {"table": "limits", **error})
    text = stages.report.tables([old, new])
    assert text.index("| 111 | yes |") < text.index("| 222 | **no** | 2 (1 to 3) |")
    assert "| RuntimeError: a \\| b |  |" in text and "**cut off**, 3 s: too slow" in text
    where = [text.index(word) for word in ("train", "old; torch", "new; torch", "feed")]
    assert where == sorted(where)
    # What was not measured is told where no other run has it.
    empty = {**new, "stages": [{**new["stages"][0], "rows": []}]}
    assert stages.report.tables([empty, new]) == stages.report.tables([new])
    assert len(stages.report.failures(new["stages"])) == 2


def test_tables_go_between_the_marks_of_a_page(stages, check, monkeypatch, tmp_path, capsys):
    report, page = stages.report, tmp_path / "page.md"
    monkeypatch.setattr(report, "PAGE", page)
    check.attempt("speed", lambda: {"value": 123.0})
    before, after = f"# Page\n\n{report.BEGIN}", f"{report.END}\nThe rest.\n"
    page.write_text(f"{before}old\n{after}")
    for _ in range(2):
        assert report.main([check.record.path], docs=True) == 0
        text = page.read_text()
        assert text.startswith(before) and text.endswith(after)
        assert text.count("| 123 |") == 1 and "old" not in text
        assert capsys.readouterr().out.strip() in text  # and not that the code is another
    page.write_text(before)
    with pytest.raises(ConfigError, match="lacks the lines"):
        report.main([check.record.path], docs=True)
    assert page.read_text() == before


def test_errors_are_relative_and_infinite_where_numbers_are_not_finite(stages):
    error, ones = stages.exact.error, torch.ones(4)
    assert error([ones, ones * 1.5], [ones.double()] * 2) == pytest.approx(0.5)
    assert error([ones, ones], [ones.double()] * 2) == 0
    for wrong in (math.nan, math.inf):
        assert error([ones * wrong, ones], [ones.double()] * 2) == math.inf


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_passes_in_every_precision(compared, kind, dropout):
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        for padded in (False, True):
            row = compared(kind, precision, padded, dropout)
            assert row["passed"] and not row["wrong"], (precision, padded, row)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("change", ["no Gaussian", "the map shifted by a cell"])
def test_a_wrong_attention_does_not_pass(compared, monkeypatch, change, dropout):
    right = attention.attend

    def wrong(*tokens, biases, dropout):
        if change == "no Gaussian":
            biases = [replace(bias, query=bias.query * 0) for bias in biases]
        else:
            biases = [replace(bias, key=bias.key.roll(1, -2)) for bias in biases]
        return right(*tokens, biases=biases, dropout=dropout)

    monkeypatch.setattr(attention, "attend", wrong)
    for kind in KINDS:
        for precision in ("fp32", "bf16"):
            row = compared(kind, precision, kind == "single", dropout)
            named = {"output error", "of Gaussians"} <= set(row["wrong"].split(", "))
            assert named and not row["passed"], (kind, precision, row)
