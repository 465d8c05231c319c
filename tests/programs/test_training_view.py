"""What a run shows of itself, in each host: its metrics, pictures, average and page of results."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import ENGINES
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import smca
from smca.checkpoints import load_state
from smca.config import load_cfg
from smca.engine.prepare import prepare
from smca.engine.report import percent
from smca.modeling import build_detector
from smca.native.evaluator import Evaluator
from smca.structures import Detections
from smca.visualization.detections import training_picture

DECAY = 0.3
OPTIONS = [
    *("MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", DECAY, "VIS_PERIOD", 2),
    *("SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 3, "SOLVER.BACKBONE_MULTIPLIER", 0.1),
]
CLASSES = ["circle", "rectangle", "triangle"]
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module")
def trained():
    return {}


@pytest.fixture(params=ENGINES)
def run(request, trained, config_file, train_net, tmp_path_factory):
    """Config file, folder and output of a run in each host, which the first test makes."""
    engine = request.param
    file = config_file(*OPTIONS)
    if engine not in trained:
        folder = tmp_path_factory.mktemp(engine)
        output = train_net("--engine", engine, "--config-file", file, "OUTPUT_DIR", folder)
        trained[engine] = folder, output
    return file, *trained[engine]


def checkpoint(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_metrics(run):
    _, folder, _ = run
    # Detectron2's writer has the losses beside the first evaluation, too.
    *others, line = [line for line in lines(folder) if "total_loss" in line]
    assert [other["iteration"] for other in others] == ([2] if "detectron2" in folder.name else [])
    assert line["iteration"] == 5
    assert line["epoch"] == pytest.approx(6 * 4 / 12)
    assert line["lr_backbone"] == pytest.approx(0.1 * line["lr"])
    assert line["lr"] == pytest.approx(5e-4 * 0.1)
    assert line["grad_norm"] > 0 and line["data_time"] > 0
    evaluated = [line for line in lines(folder) if "bbox/AP" in line]
    assert len(evaluated) == 2
    names = {f"bbox/{metric}" for metric in METRICS} | {f"bbox/AP-{name}" for name in CLASSES}
    for line in evaluated:
        assert names == {name for name in line if name.startswith("bbox/")}
    tags = events(folder).Tags()["scalars"]
    assert names | {"epoch", "lr", "lr_backbone", "grad_norm"} <= set(tags)


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def test_pictures(run):
    _, folder, _ = run
    accumulator = events(folder)
    assert accumulator.Tags()["images"] == ["detections"]
    pictures = accumulator.Images("detections")
    assert [picture.step for picture in pictures] == [1, 3, 5]
    for picture in pictures:
        with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
            # A batch of four images, enlarged for text to fit.
            assert image.size == (4 * 384 + 3 * 8, 384)
            assert len(image.getcolors(1 << 20)) > 100


def test_the_average_is_what_the_recursion_makes_of_the_weights(run):
    _, folder, _ = run
    states = [checkpoint(folder, f"model_{n:07d}") for n in range(5)]
    states.append(checkpoint(folder, "model_final"))
    statistics = {
        name for name in states[0]["model"] if "running_" in name or "num_batches" in name
    }
    names = states[0]["model"].keys() - statistics
    assert names and statistics
    average = {name: states[0]["ema"][name].double() for name in names}
    for n, state in enumerate(states[1:], start=1):
        assert state["ema"].keys() == state["model"].keys()
        decay = min(DECAY, (1 + n) / (10 + n))
        for name in names:
            average[name] = decay * average[name] + (1 - decay) * state["model"][name]
            torch.testing.assert_close(
                state["ema"][name].double(), average[name], rtol=1e-5, atol=1e-7
            )
        for name in statistics:
            torch.testing.assert_close(state["ema"][name], state["model"][name], rtol=0, atol=0)
    assert "ema" in checkpoint(folder, "model_best")


def found_by(state, cfg):
    """Scores and boxes of the native host's evaluation with these weights."""
    detector = build_detector(cfg)
    load_state(detector, state, source="a test", strict=True)
    Evaluator(cfg, detector)()
    return written(cfg.OUTPUT_DIR)


def written(folder):
    rows = json.loads((Path(folder) / "inference/coco_instances_results.json").read_text())
    rows.sort(key=lambda row: (row["image_id"], -row["score"]))
    return np.array([[row["score"], *row["bbox"]] for row in rows])


def test_evaluations_are_of_the_average(run):
    file, folder, _ = run
    final = checkpoint(folder, "model_final")
    assert final["class_names"] == CLASSES
    cfg = prepare(load_cfg(smca.get_cfg(), file))
    found = written(folder)
    np.testing.assert_allclose(found, found_by(final["ema"], cfg), atol=1e-3)
    assert np.abs(found[:, 0] - found_by(final["model"], cfg)[:, 0]).max() > 1e-4


def test_the_page_of_results(run):
    _, folder, _ = run
    page = (folder / "results.md").read_text().splitlines()
    assert page[0] == f"# {folder.name}"
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page]
    evaluated = [line for line in lines(folder) if "bbox/AP" in line]
    head = page.index("## val") + 2
    assert rows[head][: len(METRICS)] == METRICS
    scores = [percent(evaluated[-1][f"bbox/{metric}"]) for metric in METRICS]
    assert rows[head + 2][: len(METRICS)] == scores
    best = max(line["bbox/AP"] for line in evaluated)
    assert rows[head][-1] == "best AP"
    assert rows[head + 2][-1].startswith(f"{percent(best)} after ")
    by_class = {name: percent(evaluated[-1][f"bbox/AP-{name}"]) for name in CLASSES}
    head = rows.index(["class", "AP"])
    assert dict(rows[head + 2 : head + 5]) == by_class
    facts = dict(row for row in rows if len(row) == 2)
    assert facts["iterations"] == "6 of 4 images" and facts["epochs"] == "2.0 of 12 images"
    assert facts["evaluated"] == f"moving average of the weights, decay {DECAY}"
    assert float(facts["seconds an iteration"]) > 0


def test_classes_are_left_out_where_they_are_not_asked_for(
    engine, config_file, train_net, tmp_path
):
    opts = ("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "TEST.EVAL_PERIOD", 1)
    file = config_file(*opts, "TEST.PER_CLASS_AP", False)
    train_net("--engine", engine, "--config-file", file)
    keys = {name for name in lines(tmp_path / "out")[-1] if name.startswith("bbox/")}
    assert keys == {f"bbox/{metric}" for metric in METRICS}
    assert "| class |" not in (tmp_path / "out/results.md").read_text()


def test_a_picture_has_ground_truth_and_detections_where_they_are():
    image = torch.zeros(3, 400, 800, dtype=torch.uint8)
    image[0] = 255  # the first channel: blue, in BGR
    gt_boxes = torch.tensor([[400.0, 100, 600, 300]])
    scores = torch.tensor([0.1, 0.05, 0.04, 0.03, 0.02])
    corners = torch.arange(5.0)[:, None] * 40 + torch.tensor([100.0, 100, 130, 130])
    few = Detections(corners, scores, torch.zeros(5, dtype=torch.int64))
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    pictures = {
        name: training_picture(
            [image, image[:, :200]], [gt_boxes, gt_boxes[:0]], [found, empty], image_format="BGR"
        )
        for name, found in (("few", few), ("none", empty))
    }
    shown = pictures["none"]
    # Sides of 640 at most, beside each other on white.
    assert shown.shape == (320, 2 * 640 + 8, 3) and shown.dtype == np.uint8
    assert (shown[:, 640:648] == 255).all() and (shown[160:, 648:] == 255).all()
    assert (shown[10, 10] == (0, 0, 255)).all()
    inside = (slice(80, 240), slice(320, 480))
    changed = (shown[:, :640] != (0, 0, 255)).any(-1)
    assert changed[inside].any() and changed.sum() == changed[inside].sum()
    # Of detections that are not certain the best three.
    drawn = (pictures["few"] != shown).any(-1)
    sides = [drawn[round(0.8 * (y + 15)), round(0.8 * y)] for y in range(100, 300, 40)]
    assert sides == [True, True, True, False, False]
