"""The criterion's benchmark at a tiny size, and the plain loops that it compares with."""

import criterion as program
import pytest
import torch
from torch.testing import assert_close

TINY = ("--batches", 2, "--layers", 2, "--queries", 7, "--classes", 4, "--device", "cpu")
FAST = ("--rounds", 2, "--least-seconds", 0)

PARTS = [
    *("criterion", "plain", "matcher", "costs", "transfer", "assignment"),
    *("losses", "losses+backward"),
]


@pytest.mark.slow
def test_rows_of_all_cases_with_their_parts_errors_and_shares(measured):
    flags = ("--losses", "focal", "--boxes", 1, 3, "--step-seconds", 10)
    printed, record = measured(program, *TINY, *FAST, *flags)
    rows = record["rows"]
    found = [(row["loss"], row["boxes"], row["part"]) for row in rows]
    assert found == [("focal", boxes, part) for boxes in (1, 3) for part in PARTS]
    for row in rows:
        seconds = row["seconds"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
        assert row["share_of_step"] == pytest.approx(seconds["median"] / 20)
        assert row["over_criterion"] > 0 and row["waits"] is None
        whole = row["part"] in ("criterion", "plain")
        assert (row["peak_mib"] is not None) == (whole and row["boxes"] == 3)
        if row["part"] == "criterion":
            assert row["over_criterion"] == 1
            assert row["error"] < 1e-5 and row["gradient_error"] < 1e-5
    [bar] = record["bars"]
    worst = max(row["share_of_step"] for row in rows if row["part"] == "criterion")
    assert bar["value"] == worst and bar["passed"] == (worst <= 0.03)
    assert {"machine", "commit", "software", "command"} <= record.keys()
    assert "criterion / training step" in printed and "losses+backward" in printed


@pytest.mark.slow
def test_the_share_is_of_a_step_that_is_measured(measured, config_file):
    step = ("--step-config", config_file(), "--step-size", 64, 64)
    _, record = measured(program, *TINY, *FAST, "--boxes", 1, "--no-memory", *step)
    found = [(row["loss"], row["part"]) for row in record["rows"]]
    assert found == [(loss, part) for loss in ("focal", "softmax") for part in PARTS]
    assert all(row["error"] < 1e-5 for row in record["rows"] if row["part"] == "criterion")
    shares = [row["share_of_step"] / row["seconds"]["median"] for row in record["rows"]]
    assert 0 < 1 / shares[0] < 60
    assert shares == pytest.approx([shares[0]] * len(shares))


@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_the_plain_matches_are_those_of_the_matcher(loss):
    case = program.Case(loss=loss, batch=3, boxes=5, layers=2, queries=20, classes=4)
    work = program.Work(case, torch.device("cpu"))
    matches = work.matcher(work.predictions, work.targets)
    objects = work.targets.labels.unbind(), work.targets.boxes.unbind()
    plain = program.plain_criterion.match_all(work.predictions, *objects, softmax=work.softmax)
    for layer, images in enumerate(plain):
        for image, (queries, targets) in enumerate(images):
            here = (matches.layer == layer) & (matches.image == image)
            assert_close(matches.query[here], queries)
            assert_close(matches.target[here], targets)


def test_errors_show_a_loss_that_is_another():
    case = program.Case(loss="focal", batch=2, boxes=3, layers=2, queries=9, classes=4)
    work = program.Work(case, torch.device("cpu"))
    assert work.errors()["error"] < 1e-5
    work.weight *= 1.01
    errors = work.errors()
    assert errors["error"] == pytest.approx(0.01, rel=1e-3) and errors["gradient_error"] > 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_waits_are_counted():
    numbers = torch.arange(4, device="cuda")
    assert program.waits(lambda: numbers + 1) == 0
    assert program.waits(lambda: (numbers.cpu(), numbers.sum().item())) == 2
