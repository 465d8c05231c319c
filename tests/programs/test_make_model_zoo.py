"""docs/MODEL_ZOO.md against the configs and the papers' parameters."""

import re
import runpy
from pathlib import Path

import pytest
from engines import HAS_DETECTRON2

from smca.analysis.counting import count_model
from smca.analysis.host import NATIVE
from smca.config import config_names, pretrains

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
ZOO = runpy.run_path(str(ROOT / "tools/make_model_zoo.py"))


@pytest.fixture(scope="module")
def models():
    host = NATIVE
    if HAS_DETECTRON2:
        from smca.d2.analysis import DETECTRON2 as host
    return ZOO["count_zoo"](host, flops=False)


def rows():
    return [row for table in ZOO["published"]()[0] for row in table["rows"]]


def test_every_config_is_a_row():
    assert {row["config"] for row in rows()} == set(config_names(CONFIGS))


def test_parameters_are_the_papers_or_a_note_says_why_not(models):
    _, notes, _ = ZOO["published"]()
    used = set()
    for row in rows():
        used.add(row.get("note"))
        config, printed = row["config"], row.get("params")
        if printed is None or models[config].parameters is None:
            continue
        bar = 0.15 if isinstance(printed, float) else 0.7
        ours = models[config].parameters / 1e6
        missed = abs(ours - printed) > bar
        assert missed == (row.get("note") not in (None, "misprint")), (config, ours, printed)
    assert used - {None} == set(notes)


def test_epochs_and_batches_are_the_rows(models):
    """In epochs of COCO's 117,266 images with annotations, or of ImageNet's; Faster R-CNN and TSP
    have Detectron2's.
    """
    for row in rows():
        config = row["config"]
        if "faster_rcnn" in config or "tsp_" in config or row.get("epochs") is None:
            continue
        solver = models[config].cfg.SOLVER
        images = 1_281_167 if pretrains(models[config].cfg) else 117_266
        epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / images
        assert epochs == pytest.approx(row["epochs"], rel=2e-3), config
        batch = re.search(r"batch (\d+)", row["model"])
        if batch:
            assert int(batch[1]) == solver.IMS_PER_BATCH


def test_the_document_is_up_to_date(models):
    """All of it but our GFLOPs, which take minutes to count."""
    written = (ROOT / "docs/MODEL_ZOO.md").read_text()
    expected = ZOO["model_zoo"](models)
    if not HAS_DETECTRON2:
        written, expected = (_without(text, "_rcnn_") for text in (written, expected))
    assert _without_our_flops(written) == _without_our_flops(expected), (
        "run: python tools/make_model_zoo.py"
    )


def _without(text, word):
    return [line for line in text.splitlines() if not (word in line and line.startswith("|"))]


def _without_our_flops(text):
    lines = text.splitlines() if isinstance(text, str) else text
    cells = [line.split(" | ") for line in lines]
    return [row[:5] + row[6:] if len(row) > 6 else row for row in cells]


def test_our_flops_in_the_document(models):
    name = "ablations/table2_head_shared_b16"
    counts = count_model(
        NATIVE.build(NATIVE.read(str(CONFIGS / f"{name}.yaml")), "cpu"),
        size=ZOO["SIZE"],
        activations=False,
    )
    (line,) = [
        line
        for line in (ROOT / "docs/MODEL_ZOO.md").read_text().splitlines()
        if line.startswith("|") and f"[{name}]" in line
    ]
    assert line.split(" | ")[5] == f"{counts.parts[''].multiply_adds / 1e9:.1f}"


def test_commands(models):
    command = ZOO["train_command"]("smca_R101_50ep", models["smca_R101_50ep"].cfg)
    assert command == ("python train_net.py --config-file configs/smca_R101_50ep.yaml --num-gpus 8")
    name = "baselines/faster_rcnn_FPN_R50_36ep"
    assert "--engine detectron2 --num-gpus 8" in ZOO["train_command"](name, models[name].cfg)
