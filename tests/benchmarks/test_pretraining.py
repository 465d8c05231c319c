"""The comparison of fine-tunings, run for a few iterations of a tiny model as a user runs it."""

import csv
from pathlib import Path

import pretraining as benchmark
import pytest

ROOT = Path(__file__).parents[2]
TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.SMCA.HIDDEN_DIM", 16, "MODEL.SMCA.NHEADS", 2, "MODEL.SMCA.DIM_FEEDFORWARD", 16),
    *("MODEL.SMCA.NUM_QUERIES", 8, "MODEL.SMCA.DECODER.NUM_LAYERS", 1),
    *("MODEL.SMCA.UP_DETR.FEATURE_DIM", 16),
]


@pytest.mark.slow
def test_each_stage_starts_from_the_one_before_and_is_run_once(start_program, tmp_path):
    def run():
        return start_program(
            *("--output", tmp_path / "out", "--data", tmp_path / "data", "--seeds", 0, 1),
            *("--images", 8, 4, "--iterations", 20, "--opts", *TINY, "SOLVER.IMS_PER_BATCH", 2),
            script=ROOT / "benchmarks/pretraining.py",
        ).done()

    printed = run()
    commands = [line for line in printed.splitlines() if "train_net.py" in line]
    assert len(commands) == 4 + 3  # the seeds have one backbone
    starts = [line.partition("MODEL.WEIGHTS ")[2].partition(" ")[0] for line in commands]
    out = tmp_path / "out"
    assert starts[1:4] == [
        str(out / "smca/seed0/backbone.pth"),
        str(out / "smca/seed0/backbone.pth"),
        str(out / "pretraining/seed0/model_final.pth"),
    ]
    assert "backbone loaded, the rest starts anew" in printed
    assert "is pre-trained: patch2query" in printed
    rows = list(csv.DictReader((out / "pretraining.csv").open()))
    assert [(row["system"], int(row["iteration"])) for row in rows] == [
        (name, iteration)
        for name in ("backbone", "pretrained") * 2
        for iteration in range(2, 21, 2)
    ]
    losses = list(csv.DictReader((out / "pretraining_losses.csv").open()))
    assert [row["part"] for row in losses] == ["start", "end"] * 2
    assert all(float(row[name]) > 0 for row in losses for name in benchmark.LOSSES)
    assert "train_net.py" not in run()
    assert len((out / "pretraining.csv").read_text().splitlines()) == 41


def test_the_document_shows_the_results_that_are_kept():
    text = benchmark.report(benchmark.parse([]))
    page = benchmark.DOCS.read_text()
    shown = page.split("<!-- results: begin -->\n")[1].split("<!-- results: end -->\n")[0]
    assert shown == text, "run: python benchmarks/pretraining.py --report-only --docs"


def test_a_changed_recipe_needs_a_folder_of_its_own(capsys):
    with pytest.raises(SystemExit):
        benchmark.parse(["--iterations", "5"])
    assert "name a folder of your own with --output" in capsys.readouterr().err
