"""The page of results, read as a program would."""

import math

import pytest

from smca.engine.report import Clock, percent, results_tables, run_facts, write_results
from smca.modeling import build_detector


def tables(page):
    """The tables of a page of Markdown: lists of rows of cells, the heads first."""
    blocks = [[]]
    for line in page.splitlines():
        if line.startswith("|"):
            blocks[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif blocks[-1]:
            blocks.append([])
    return [[head, *rows] for head, _, *rows in filter(None, blocks)]


SCORES = {"AP": 12.345, "AP50": 20, "AP75": 9.96, "APs": math.nan, "APm": 0.0, "APl": 30.0}
SCORES |= {"AR": 40.0, "ARs": math.nan}


def test_tables_of_datasets():
    results = {
        "mine_val": {"bbox": {**SCORES, "AP-cat": 10.04, "AP-a|b": math.nan}},
        "mine_test": {"bbox": SCORES},
    }
    page = results_tables(results, {"best_metric": 14.0, "best_iter": 1999})
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "## mine_val",
        "## mine_test",
    ]
    first, classes, second = tables(page)
    head = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl"]
    row = ["12.3", "20.0", "10.0", "–", "0.0", "30.0", "40.0", "–", "–", "–"]
    assert first == [[*head, "best AP"], [*row, "14.0 after 2,000 iterations"]]
    assert classes == [["class", "AP"], ["cat", "10.0"], [r"a\|b", "–"]]
    assert second == [head, row]


def test_an_evaluation_alone_has_no_best():
    ((head, _),) = tables(results_tables({"val": {"bbox": SCORES}}))
    assert "best AP" not in head
    assert percent(None) == "–"


def facts(cfg, clock, num_images=96):
    model = build_detector(cfg)
    found = run_facts(cfg, model, num_images=num_images, clock=clock)
    write_results(cfg.OUTPUT_DIR, found, {}, {"best_metric": None})
    with open(f"{cfg.OUTPUT_DIR}/results.md") as file:
        page = file.read()
    assert page.startswith("# run\n")
    ((head, *rows),) = tables(page)
    assert head == ["trained", f"`{cfg.OUTPUT_DIR}`"]
    return model, dict(rows)


@pytest.fixture
def cfg(tiny_config, tmp_path):
    (tmp_path / "run").mkdir()
    sizes = ["SOLVER.MAX_ITER", 1200, "SOLVER.IMS_PER_BATCH", 8]
    return lambda *opts: tiny_config(*sizes, "OUTPUT_DIR", str(tmp_path / "run"), *opts)


def test_what_was_trained(cfg):
    model, found = facts(cfg(), Clock(seconds=3720.4, iterations=1200))
    assert found["iterations"] == "1,200 of 8 images"
    assert found["epochs"] == "100.0 of 96 images"
    count = sum(parameter.numel() for parameter in model.parameters())
    assert found["parameters"] == f"{count / 1e6:.2f} M"
    assert found["training time"] == "1:02:00"
    assert found["seconds an iteration"] == "3.100"
    assert found["device"] == "CPU, 1 thread"
    assert 0.1 < float(found["peak memory"].removesuffix(" GiB of the process")) < 100
    assert "evaluated" not in found


def test_what_is_not_known_is_not_said(cfg):
    _, found = facts(cfg("MODEL.EMA.ENABLED", True), Clock(), num_images=0)
    assert found.keys().isdisjoint({"epochs", "training time", "seconds an iteration"})
    assert found["evaluated"] == "moving average of the weights, decay 0.9998"
    _, found = facts(cfg(), Clock(seconds=10, iterations=20))
    assert found["training time"] == "0:00:10 for 20 iterations"
    assert found["seconds an iteration"] == "0.500"
