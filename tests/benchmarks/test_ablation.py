"""The ablation benchmark on a tiny detector."""

import ablation as program
import pytest
import torch


@pytest.fixture
def run(config_file, measured):
    """``run("--flag", ...)`` runs the program here on a tiny detector and returns its rows."""
    common = ("--config", config_file(), "--device", "cpu", "--rounds", 1, "--size", 64, 96)
    return lambda *flags: measured(program, *common, *flags)[1]["rows"]


@pytest.fixture
def quick():
    """All but the one that takes a minute to compile."""
    return [name for name in program.ABLATIONS if name != "compiled"]


@pytest.mark.slow
def test_each_ablation_is_measured_at_each_of_its_works(quick, run):
    rows = run("--no-memory", "--ablations", *quick)
    expected = [(name, work) for name in quick for work in program.ABLATIONS[name].works]
    assert [(row["ablation"], row["work"]) for row in rows] == expected
    for row in rows:
        seconds = row["seconds_with"]["median"] / row["seconds_without"]["median"]
        assert row["time_with_over_without"] == pytest.approx(seconds)
        assert row["taken"] == ("yes" if program.ABLATIONS[row["ablation"]].taken else "no")


def test_ablations_change_no_result(quick, tiny_config):
    """But those that change what is dropped."""
    setting = program.Setting(size=(64, 96), batch=2, precision="fp32", device="cpu")
    # Batch norm would see other images with each step.
    cfg = tiny_config("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.SMCA.DROPOUT", 0.0)
    for work in program.METHODS:
        worker = program.Worker(cfg, setting, program.DEFAULT, work)
        expected = worker()
        for name in quick:
            ablation = program.ABLATIONS[name]
            if work not in ablation.works or "dropout" in name:
                continue
            found = program.Worker(cfg, setting, ablation, work)()
            if work == "training":
                found, expected_here = sum(found.values()), sum(expected.values())
                assert found == pytest.approx(expected_here, rel=1e-4), name
            else:
                for one, other in zip(found, expected, strict=True):
                    torch.testing.assert_close(one.scores.detach(), other.scores, msg=name)


@pytest.mark.slow
def test_memory_is_measured(run):
    (row,) = run("--ablations", "all blocks recomputed", "--size", 256, 320)
    assert row["mib_with"] > 0 and row["mib_without"] > 0
    ratio = row["mib_with"] / row["mib_without"]
    assert row["memory_with_over_without"] == pytest.approx(ratio)
