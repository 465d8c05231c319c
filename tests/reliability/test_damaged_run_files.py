"""Damaged files of runs, which are read to compare runs."""

import json
import runpy
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smca.analysis.runs import read_metrics
from smca.visualization.curves import draw_histories

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/plot_training.py"))
read_runs, runs_table = TOOL["read_runs"], TOOL["runs_table"]
LINES = [json.dumps({"iteration": i, "total_loss": 9.5 - i, "bbox/AP": i}) for i in range(4)]


@pytest.mark.parametrize(
    "line",
    ["[]", "3", "{", '{"iteration": NaN}', '{"iteration": Infinity}', "\0\0", '"a"']
    + ['{"iteration": "3"}', '{"iteration": 1e3}', '{"loss": 1}'],
)
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "metrics.json"
    path.write_text("\n".join([LINES[0], line, *LINES[1:]]))
    with pytest.raises(ValueError, match=r"metrics\.json, line 2 is not"):
        read_metrics(path)
    # The last may have been cut short.
    path.write_text("\n".join([LINES[0], line]))
    assert read_metrics(path)["bbox/AP"] == ([0], [0])


def test_values_that_are_no_finite_numbers_are_left_out(tmp_path):
    values = ["NaN", "-Infinity", "1e999", "true", "null", '"1"', "[1]", "{}"]
    lines = [f'{{"iteration": {i}, "a": {value}}}' for i, value in enumerate(values)]
    (tmp_path / "metrics.json").write_text("\n".join([*lines, '{"iteration": 99, "a": 5}']))
    assert read_metrics(tmp_path / "metrics.json") == {"a": ([99], [5])}


@pytest.mark.parametrize(
    "text",
    ["DATASETS: {TEST: 3}\n", "DATASETS: {TEST: [[1]]}\n", "DATASETS: 3\n", "SOLVER: []\n", ""]
    + [f"SOLVER: {{IMS_PER_BATCH: {value}}}\n" for value in ("x", 0, -1, ".nan", "[1]")],
)
def test_a_config_of_other_code_is_no_hindrance(tmp_path, text):
    (tmp_path / "metrics.json").write_text("\n".join(LINES))
    (tmp_path / "config.yaml").write_text(text)
    assert read_runs([tmp_path])[0].iterations == 4
    with pytest.raises(ValueError, match=r"config\.yaml does not tell"):
        read_runs([tmp_path], images=9)


@settings(max_examples=200)
@given(data=st.data())
@example(data=None)
def test_damaged_bytes_are_read_or_named(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged_run"
    folder.mkdir(exist_ok=True)
    files = {"metrics.json": "\n".join(LINES), "config.yaml": "SOLVER: {IMS_PER_BATCH: 4}\n"}
    for name, text in files.items():
        content = bytearray(text.encode())
        for _ in range(0 if data is None else data.draw(st.integers(0, 3))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place : place + 1] = data.draw(st.binary(max_size=3))
        (folder / name).write_bytes(content)
    try:
        histories = read_runs([folder], images=40)
    except ValueError as error:
        assert any(f"{folder}/{name}" in str(error) for name in files)
    else:
        assert "damaged_run" in runs_table(histories)
        if data is None:
            assert draw_histories(histories).axes
