"""The arithmetic of the race's report, on curves made up here."""

import csv
import json
from pathlib import Path

import convergence_report as report
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TITLES = {"fast": "Fast", "detr": "DETR", "idle": "Idle"}


def write_run(output: Path, system: str, seed: int, ap: dict[int, float]) -> None:
    """``metrics.json`` of a run with AP after so many iterations."""
    folder = output / system / f"seed{seed}"
    folder.mkdir(parents=True)
    lines = [{"iteration": i - 1, "bbox/AP": value} for i, value in ap.items()]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def race(tmp_path):
    """Two seeds of a fast system and of DETR, one of them unfinished; one run without a number."""
    write_run(tmp_path, "fast", 0, {10: 20.0, 20: 41.0, 30: 50.0, 40: 49.0})
    write_run(tmp_path, "fast", 1, {10: 10.0, 20: 39.0, 30: 52.0, 40: 49.0})
    write_run(tmp_path, "detr", 0, {10: 0.0, 20: 2.0, 30: 10.0, 40: 40.0})
    write_run(tmp_path, "detr", 1, {10: 2.0, 20: 4.0, 30: 20.0})
    (tmp_path / "idle" / "seed0").mkdir(parents=True)
    return tmp_path


def test_curves_are_mean_and_range_of_the_seeds_where_all_have_been_evaluated(race):
    runs = report.read_race(race, list(TITLES), 40)
    assert [(run.system, run.seed) for run in runs] == [
        ("fast", 0),
        ("fast", 1),
        ("detr", 0),
        ("detr", 1),
    ]
    curves = report.curves(runs)
    assert list(curves) == ["fast", "detr"]
    assert curves["fast"].mean == [15.0, 40.0, 51.0, 49.0]
    assert curves["fast"].low == [10.0, 39.0, 50.0, 49.0]
    assert curves["fast"].high == [20.0, 41.0, 52.0, 49.0]
    assert curves["fast"].best == (30, 51.0)
    assert (curves["detr"].iterations, curves["detr"].mean) == ([10, 20, 30], [1.0, 3.0, 15.0])


@pytest.mark.parametrize(("level", "expected"), [(0.0, 10), (15.0, 10), (15.1, 20), (51.1, None)])
def test_iterations_to_reach(level, expected):
    curve = report.Curve([10, 20, 30], [15.0, 51.0, 49.0], [0.0] * 3, [0.0] * 3)
    assert report.iterations_to_reach(curve, level) == expected


def test_the_tables_compare_with_the_baseline_at_its_best(race):
    text = report.markdown(report.read_race(race, list(TITLES), 40), TITLES)
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in text.splitlines()]
    assert ["AP after iterations", "10", "20", "30", "40"] in rows
    assert rows[3][:4] == ["DETR", "1.0 (0.0-2.0)", "3.0 (2.0-4.0)", "15.0 (10.0-20.0)"]
    assert "iterations to DETR's best AP (15.0)" in rows[5]
    assert rows[7] == ["Fast", "2", "51.0", "30", "38.8", "10", "3.0"]
    assert rows[8] == ["DETR", "2", "15.0", "30", "6.3", "30", "1.0"]


def test_what_is_never_as_good_as_the_baseline_is_said(tmp_path):
    write_run(tmp_path, "fast", 0, {10: 1.0, 20: 2.0})
    assert "DETR" not in report.markdown(report.read_race(tmp_path, ["fast"], 20), TITLES)[:100]
    write_run(tmp_path, "detr", 0, {10: 3.0, 20: 3.0})
    text = report.markdown(report.read_race(tmp_path, list(TITLES), 20), TITLES)
    assert "| Fast | 1 | 2.0 | 20 | 1.5 | not reached |  |" in text
    assert "| DETR | 1 | 3.0 | 10 | 3.0 | 10 | 1.0 |" in text
    assert report.markdown([], TITLES) == "Nothing has been evaluated yet.\n"


def test_the_last_evaluation_counts_whatever_number_the_host_gives_it(tmp_path):
    write_run(tmp_path, "fast", 0, {10: 1.0, 21: 2.0})
    assert set(report.read_run(tmp_path, "fast", 0, 20).evaluations) == {10, 20}


def test_budgets_end_with_the_last_and_are_few():
    assert report.budgets([10, 20, 30]) == [10, 20, 30]
    assert report.budgets(range(1, 16)) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert report.budgets(range(1, 18), most=4) == [2, 7, 12, 17]


def test_the_csv_has_a_row_an_evaluation(race, tmp_path):
    report.write_csv(report.read_race(race, list(TITLES), 40), tmp_path / "race.csv")
    with (tmp_path / "race.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert rows[1] | {"AP75": "-"} == {
        **{"system": "fast", "seed": "0", "iteration": "20", "AP": "41.0000"},
        **{"AP50": "", "AP75": "-", "APs": "", "APm": "", "APl": ""},
    }


def test_the_picture_has_a_line_and_a_band_of_its_own_color_a_system(race, tmp_path):
    report.plot(report.read_race(race, list(TITLES), 40), TITLES, tmp_path / "race.png")
    with Image.open(tmp_path / "race.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for color in [(31, 119, 180), (255, 127, 14)]:  # of the first and the second system
        assert (np.abs(pixels - color).max(axis=2) < 10).sum() > 300
        band = 255 - 0.2 * (255 - np.array(color))
        assert (np.abs(pixels - band).max(axis=2) < 3).sum() > 300
    report.plot([], TITLES, tmp_path / "empty.png")
