"""What runs hold after thousands of iterations, images and frames: no more than at first."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smca.checkpoints import write_checkpoint
from smca.modeling import build_detector

ROOT = Path(__file__).parents[2]
WATCHED = ROOT / "tests/support/watched_programs.py"
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone says what processes hold"
)

# Even less than the tiny detector: what runs here runs thousands of times.
TINIER = [
    *("MODEL.SMCA.IN_FEATURES", ["res4"], "MODEL.SMCA.NUM_SCALES", 1),
    *("MODEL.SMCA.ENCODER.BLOCKS", ["intra"], "MODEL.SMCA.DECODER.NUM_LAYERS", 1),
]
OPEN = ("files", "threads", "processes")


@pytest.fixture
def held(start_program, monkeypatch):
    """``held(program, ...)``: what a program of watched_programs.py prints of itself."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"), prepend=os.pathsep)

    def run(*arguments):
        output = start_program(*arguments, script=WATCHED).done()
        return json.loads(output.splitlines()[-1])

    return run


def noise(folder, count, classes):
    """The entry of a dataset of so many images of noise, with seven boxes each.

    They have nine sizes: on a CPU torch keeps kernels by size.
    """
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, count + 1):
        height, width = (8 * rng.integers(4, 7, 2)).tolist()
        name = f"{number}.bmp"
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for category in rng.integers(1, classes + 1, 7).tolist():
            box = [1, 1, width / 2, height / 2]
            entry = {"image_id": number, "category_id": category, "bbox": box, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "area": box[2] * box[3], **entry})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, classes + 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "noise.json").write_text(json.dumps(content))
    return ["noise", str(folder / "noise.json"), str(folder)]


@pytest.mark.slow
def test_a_thousand_iterations_hold_what_three_hundred_did(
    engine, config_file, start_program, tmp_path
):
    """With evaluations, checkpoints and a moving average on the way."""
    file = config_file(
        *(*TINIER, "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", (32, 40, 48)),
        *("DATALOADER.NUM_WORKERS", 2, "MODEL.EMA.ENABLED", True),
        *("TEST.EVAL_PERIOD", 100, "SOLVER.CHECKPOINT_PERIOD", 125),
    )
    output = tmp_path / "long_run.json"
    flags = ("--config-file", file, "--engines", engine, "--output", output)
    often = ("--interval", 0.1, "--window", 100, "--opts", "SOLVER.MAX_ITER", 1000)
    start_program(*flags, *often, script=ROOT / "benchmarks/long_run.py").done()
    first, *_, last = json.loads(output.read_text())["rows"]
    # The faster the machine, the more of the last lines are written between two looks.
    assert first["after"] == 300 and 800 <= last["after"] <= 900
    assert last["resident"] < 1.008 * first["resident"]
    assert last["total"] < 1.008 * first["total"]
    assert all(last[name] == first[name] for name in ("threads", "processes"))
    assert last["files"] <= first["files"] and last["shared"] <= first["most shared"]
    # The trainer and its loaders. Those of an evaluation may live between two looks.
    assert last["processes"] == 3
    with output.with_suffix(".csv").open() as file:
        assert {row["engine"] for row in csv.DictReader(file)} == {engine}


@pytest.mark.slow
def test_evaluating_1200_images_needs_what_their_detections_need(
    engine, config_file, held, tmp_path
):
    """Of 100 detections an image, 32 bytes each. An image has 5,000 bytes and is not kept; as
    Python's objects the detections of one would have 47,000.
    """
    classes = 20
    entry = noise(tmp_path, 1200, classes)
    file = config_file(
        *(*TINIER, "DATASETS.COCO_FORMAT", [entry], "DATASETS.TEST", ("noise",)),
        *("DATASETS.TRAIN", ("noise",), "MODEL.SMCA.NUM_CLASSES", classes),
        *("DATALOADER.NUM_WORKERS", 1, "INPUT.MIN_SIZE_TEST", 0),
    )
    found = held("evaluate", file, engine, 1, "300,750,1200")
    resident = {int(image): at["resident"] for image, at in found["at"].items()}
    for begin, end in ((300, 750), (750, 1200), (300, 1200)):
        assert (resident[end] - resident[begin]) / (end - begin) < 6000, resident
    # With the loader, and scoring a class at a time: one has most of the detections, since an
    # untrained detector prefers few classes.
    assert found["most"] - found["before"]["total"] < 205e6, found
    results = tmp_path / "out/inference/coco_instances_results.json"
    assert results.stat().st_size > 9.6e6
    assert found["after"][0]["files"] == found["before"]["files"]


@pytest.mark.slow
def test_fifty_evaluations_leave_nothing_behind(engine, config_file, held):
    file = config_file(*TINIER, "DATALOADER.NUM_WORKERS", 2)
    found = held("evaluate", file, engine, 50, "1")
    fifth, last = found["after"][4], found["after"][-1]
    assert [last[name] for name in OPEN] == [fifth[name] for name in OPEN]
    assert last["processes"] == 1 and last["shared"] <= fifth["shared"]
    assert last["resident"] < 1.02 * fifth["resident"]


@pytest.fixture
def weights(tiny_config, tmp_path):
    """A file of random weights."""
    detector = build_detector(tiny_config(*TINIER))
    path = tmp_path / "model.pth"
    write_checkpoint({"model": detector.state_dict()}, path)
    return path


@pytest.mark.slow
def test_a_predictor_of_five_hundred_images_holds_what_one_of_fifty_does(
    engine, config_file, weights, held
):
    first, *_, last = held("predict", config_file(*TINIER), engine, weights, 500)["after"]
    assert [last[name] for name in OPEN] == [first[name] for name in OPEN]
    assert last["resident"] < 1.02 * first["resident"]


@pytest.mark.slow
def test_a_video_of_five_hundred_frames_is_drawn_frame_by_frame(
    config_file, weights, monkeypatch, tmp_path
):
    """Of 320x240 pixels, 230 kB each, it would fill 115 MB."""
    cv2 = pytest.importorskip("cv2")
    video, output = tmp_path / "long.avi", tmp_path / "drawn"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25, (320, 240))
    frame = np.zeros((240, 320, 3), dtype=np.uint8)
    for number in range(500):
        frame[:] = number // 2
        writer.write(frame)
    writer.release()
    from long_run import watch

    model = ("--config-file", config_file(*TINIER), "--weights", weights, "--engine", "native")
    files = ("--input", video, "--output", output, "--device", "cpu")
    small = ("INPUT.MIN_SIZE_TEST", 64)
    command = [sys.executable, ROOT / "demo.py", *model, *files, *small]
    samples = [sample.held for sample in watch(list(map(str, command)), tmp_path, 0.1)]
    drawing = [held for held in samples if held.files == max(h.files for h in samples)]
    early, late = drawing[len(drawing) // 4], drawing[-1]
    assert len(drawing) > 8
    assert late.resident < 1.02 * early.resident
    written = cv2.VideoCapture(str(output / "long.avi.mp4"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 500
    written.release()


@pytest.mark.slow
def test_a_trainer_and_its_loaders_share_the_records(config_file, held, tmp_path):
    """20,000 images with seven boxes each: as Python's objects they would have 70 MB in each."""
    entry = noise(tmp_path, 100, 3)
    content = json.loads(Path(entry[1]).read_text())
    images, annotations = content["images"], content["annotations"]
    content["images"] = [
        image | {"id": i * 1000 + image["id"]} for i in range(200) for image in images
    ]
    content["annotations"] = [
        annotation | {"image_id": i * 1000 + annotation["image_id"]}
        for i in range(200)
        for annotation in annotations
    ]
    Path(entry[1]).write_text(json.dumps(content))
    file = config_file(
        *(*TINIER, "DATASETS.COCO_FORMAT", [entry], "DATASETS.TRAIN", ("noise",)),
        *("DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 3),
    )
    found = held("load", file)
    assert found["training"]["processes"] == 4
    assert found["loaded"]["total"] - found["before"]["total"] < 60e6, found
    # Of their own each has little: Python's objects that have changed, and batches.
    assert found["training"]["total"] - found["loaded"]["total"] < 3 * 25e6, found
