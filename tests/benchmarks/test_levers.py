"""The levers benchmark on a tiny detector."""

import json
import sys
from pathlib import Path

import levers as program
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(config_file, monkeypatch, tmp_path):
    """``run("--flag", ...)`` runs the program here on a tiny detector and returns its rows."""

    def run(*flags):
        output = tmp_path / "levers.json"
        files = ("--config", config_file(), "--output", output)
        common = ("--device", "cpu", "--threads", 1, "--rounds", 1, "--size", 64, 96)
        monkeypatch.setattr(sys, "argv", list(map(str, ["levers.py", *files, *common, *flags])))
        assert program.main() == 0
        return json.loads(output.read_text())["rows"]

    return run


@pytest.fixture
def quick():
    """All but the one that takes a minute to compile."""
    return [name for name in program.LEVERS if name != "compiled"]


def test_each_lever_is_measured_at_each_of_its_works(quick, run):
    rows = run("--no-memory", "--levers", *quick)
    expected = [(name, work) for name in quick for work in program.LEVERS[name].works]
    assert [(row["lever"], row["work"]) for row in rows] == expected
    for row in rows:
        seconds = row["seconds_with"]["median"] / row["seconds_without"]["median"]
        assert row["time_with_over_without"] == pytest.approx(seconds)
        assert row["taken"] == ("yes" if program.LEVERS[row["lever"]].taken else "no")


def test_levers_change_no_result(quick, tiny_config):
    """But those that change what is dropped."""
    setting = program.Setting(size=(64, 96), batch=2, precision="fp32", device="cpu")
    # Batch norm would see other images with each step.
    cfg = tiny_config("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.SMCA.DROPOUT", 0.0)
    for work in program.METHODS:
        worker = program.Worker(cfg, setting, program.DEFAULT, work)
        expected = worker()
        for name in quick:
            lever = program.LEVERS[name]
            if work not in lever.works or "dropout" in name:
                continue
            found = program.Worker(cfg, setting, lever, work)()
            if work == "training":
                found, expected_here = sum(found.values()), sum(expected.values())
                assert found == pytest.approx(expected_here, rel=1e-4), name
            else:
                for one, other in zip(found, expected, strict=True):
                    torch.testing.assert_close(one.scores.detach(), other.scores, msg=name)


@pytest.mark.slow
def test_memory_is_measured(run):
    (row,) = run("--levers", "all blocks recomputed", "--size", 256, 320)
    assert row["mib_with"] > 0 and row["mib_without"] > 0
    ratio = row["mib_with"] / row["mib_without"]
    assert row["memory_with_over_without"] == pytest.approx(ratio)
