"""The arithmetic of the race's report, on curves made up here."""

import csv
import json
from pathlib import Path

import convergence_report as report
import convergence_results as results
import numpy as np
import pytest
from convergence_results import Costs, Curve, Run
from PIL import Image

TITLES = {"fast": "Fast", "detr": "DETR", "idle": "Idle"}
ORIGIN = {"commit": "c1", "machine": "m", "software": "s"}


def run(system: str, seed: int, ap: dict[int, float]) -> Run:
    return Run(system, seed, {i: {"AP": value} for i, value in ap.items()}, ORIGIN)


# A fast system and DETR, with two seeds each; one run of DETR is longer.
RUNS = [
    run("fast", 0, {10: 20.0, 20: 41.0, 30: 50.0}),
    run("fast", 1, {10: 10.0, 20: 39.0, 30: 52.0}),
    run("detr", 0, {20: 0.0, 40: 2.0, 80: 30.0, 100: 31.0}),
    run("detr", 1, {20: 2.0, 40: 4.0, 80: 40.0}),
]
COSTS = {"fast": Costs(3e9, 1.2), "detr": Costs(2e9, 1.0)}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_curves_are_mean_and_range_of_the_seeds_where_all_have_been_evaluated():
    curves = results.curves(RUNS, TITLES)
    assert curves == {
        "fast": Curve([10, 20, 30], [15.0, 40.0, 51.0], [10.0, 39.0, 50.0], [20.0, 41.0, 52.0], 2),
        "detr": Curve([20, 40, 80], [1.0, 3.0, 35.0], [0.0, 2.0, 30.0], [2.0, 4.0, 40.0], 2),
    }
    assert curves["fast"].final == 51.0


@pytest.mark.parametrize(("level", "expected"), [(0.0, 10), (15.0, 10), (15.1, 20), (51.1, None)])
def test_iterations_to_reach_a_level(level, expected):
    curve = Curve([10, 20, 30], [15.0, 51.0, 49.0], [0.0] * 3, [0.0] * 3, 1)
    assert curve.reaches(level) == expected


def test_shares_of_the_slower_system_count_what_iterations_cost():
    curves = results.curves(RUNS, TITLES)
    fast, detr = curves["fast"], curves["detr"]
    assert results.shares(fast, detr, None) == (0.25, None, None)
    found = results.shares(fast, detr, (COSTS["fast"], COSTS["detr"]))
    assert found == pytest.approx((0.25, 0.375, 0.3))
    assert results.shares(detr, fast, None) is None


def test_the_tables_tell_ap_levels_and_comparison():
    text = report.markdown(RUNS, TITLES, COSTS)
    rows = cells(text)
    assert rows[0] == ["AP after iterations", "10", "20", "30", "40", "80"]
    assert rows[2] == [
        "Fast",
        "15.0 (10.0-20.0)",
        "40.0 (39.0-41.0)",
        "**51.0 (50.0-52.0)**",
        "",
        "",
    ]
    # By 30 iterations DETR was last evaluated after 20.
    assert (
        rows[3][1:4] == ["", "1.0 (0.0-2.0)", "1.0 (0.0-2.0)"]
        and rows[3][-1] == "**35.0 (30.0-40.0)**"
    )
    # Seeds, iterations and multiply-adds to AP 10, 20 and 30, and the costs of an iteration.
    assert rows[7] == ["Fast", "2", *("10", "20", "20"), *("0.0", "0.1", "0.1"), "3.00", "1.20"]
    assert rows[8] == ["DETR", "2", *("80",) * 3, *("0.2",) * 3, "2.00", "1.00"]
    # From the worst system on: its AP and iterations, and the shares that others need to have it.
    assert rows[12] == ["DETR", "35.0", "80", "0.25 / 0.38", ""]
    assert rows[13] == ["Fast", "51.0", "30", "", ""]


def test_without_costs_nothing_is_said_of_them():
    text = report.markdown(RUNS, TITLES)
    assert "multiply-adds" not in text and "time" not in text
    assert "| DETR | 35.0 | 80 | 0.25 |  |" in text
    assert report.markdown([], TITLES) == "Nothing has been finished yet.\n"


TITLES_OF_BARS = {
    "smca-independent": "I",
    "smca-single": "S",
    "smca-head-shared": "H",
    "smca-fixed": "F",
    "detr": "D",
    "smca-groups-short": "G",
}


@pytest.mark.parametrize(
    ("finals", "order"),
    [([50, 49, 48, 40, 30], "as in the paper"), ([49, 50, 48, 40, 30], "not the paper's order")],
)
def test_the_sentences_tell_the_order_and_the_bars(finals, order):
    systems = [name for name in TITLES_OF_BARS if name != "smca-groups-short"]
    runs = [run(s, 0, {100: ap / 2, 1000: ap}) for s, ap in zip(systems, finals, strict=True)]
    runs[0] = run(systems[0], 0, {100: 35.0, 500: finals[0]})
    runs[-1] = run("detr", 0, {500: 1.0, 1000: 30.0})
    runs.append(run("smca-groups-short", 0, {250: 40.0, 300: 55.0}))
    costs = dict.fromkeys(TITLES_OF_BARS, Costs(1e9, 1.0))
    costs["smca-groups-short"] = Costs(1e9, 1.5)
    text = report.markdown(runs, TITLES_OF_BARS, costs)
    assert f"F 40.0, D 30.0: {order}." in text
    said = (
        "I has the final AP of D (30.0) after 100 iterations, 0.10 of its iterations (bar 0.2: met)"
    )
    assert f"{said}, 0.10 of its time, 10 times fewer; the paper says ten times." in text
    said = f"G has the final AP of I ({finals[0]:.1f}) after 300 iterations, 0.60 of its iterations"
    assert f"{said} (bar 0.6: met), 0.90 of its time (bar 0.8: missed)." in text


def test_what_never_reaches_a_bar_is_said():
    runs = [run("smca-independent", 0, {10: 1.0}), run("detr", 0, {10: 3.0})]
    assert "I has the final AP of D (3.0) never." in report.markdown(runs, TITLES_OF_BARS)


def test_a_run_is_read_from_its_metrics_whatever_number_the_last_evaluation_has(tmp_path):
    lines = [{"iteration": 9, "bbox/AP": 1.0}, {"iteration": 20, "bbox/AP": 2.0, "bbox/APs": 0.5}]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = results.read_run(tmp_path, "fast", 3, 20)
    assert (found.system, found.seed) == ("fast", 3)
    assert found.evaluations == {10: {"AP": 1.0}, 20: {"AP": 2.0, "APs": 0.5}}


def test_results_are_added_and_read_again(tmp_path):
    path = tmp_path / "results/race.csv"
    assert results.read_results(path) == []
    for one in RUNS:
        results.add_results(path, one, ORIGIN)
    assert results.read_results(path) == RUNS
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    assert rows[1] == {
        **{"system": "fast", "seed": "0", "iteration": "20", "AP": "41.0000"},
        **dict.fromkeys(("AP50", "AP75", "APs", "APm", "APl"), ""),
        **ORIGIN,
    }
    assert report.origins(RUNS) == "- commit: c1\n- machine: m\n- software: s\n"


def test_the_picture_has_a_line_and_a_band_of_its_own_color_a_system(tmp_path):
    report.plot({"Scenes": RUNS, "Photographs": RUNS[:1]}, TITLES, tmp_path / "race.png")
    with Image.open(tmp_path / "race.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert picture.size[0] > 1200
    left, right = np.array_split(pixels, 2, axis=1)

    def has(part: np.ndarray, color: tuple[int, int, int]) -> bool:
        band = 255 - 0.2 * (255 - np.array(color))
        line = (np.abs(part - color).max(axis=2) < 10).sum() > 150
        return line, (np.abs(part - band).max(axis=2) < 3).sum() > 300

    fast, detr = (31, 119, 180), (255, 127, 14)  # of the first and the second system
    assert has(left, fast) == has(left, detr) == (True, True)
    assert has(right, fast) == (True, False) and has(right, detr)[1] is np.False_
    report.plot({"Scenes": []}, TITLES, tmp_path / "empty.png")


def test_the_picture_shows_any_number_of_systems(tmp_path):
    names = [f"system {number}" for number in range(40)]
    runs = [run(name, 0, {50: 1.0, 100: 2.0}) for name in names]
    report.plot({"Scenes": runs}, dict(zip(names, names, strict=True)), tmp_path / "race.png")
    with Image.open(tmp_path / "race.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 20


def test_an_arrow_leads_from_a_slower_systems_end_to_where_a_faster_one_is_as_good(tmp_path):
    runs = [
        run("smca-independent", 0, {50: 10.0, 100: 40.0}),
        run("detr", 0, {100: 1.0, 400: 20.0}),
    ]

    def colored(path: Path, **options) -> int:
        report.plot({"Scenes": runs}, TITLES_OF_BARS, path, **options)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        color = 148, 103, 189  # of the fifth system, DETR
        return (np.abs(pixels - color).max(axis=2) < 10).sum()

    without, with_arrow = colored(tmp_path / "a.png"), colored(tmp_path / "b.png", arrows=True)
    # A line of two pixels over three quarters of the width, and a text.
    assert with_arrow > without + 800
