"""The data benchmark with a handful of small pictures."""

from importlib.util import find_spec
from itertools import product
from pathlib import Path

import data as program
import numpy as np
import pytest
from PIL import Image

HOSTS = ["native", *(["detectron2"] if find_spec("detectron2") else [])]
STEPS = ["decode", "tensor", "boxes", "flip", "resize", "crop", "all"]
TINY = ("--images", 3, "--size", "60x80", "--workers", 0, 1, "--batch", 1, "--batches", 2)
FAST = ("--rounds", 2, "--least-seconds", 0, "--threads", 1, "--device", "cpu")
DRAFT = ("--draft-sizes", "60x80", "240x320", "--draft-short", 60, "--draft-images", 1)


@pytest.mark.slow
def test_steps_batches_loaders_and_reduced_decoding(measured):
    _, record = measured(program, *TINY, *FAST, *DRAFT, "--step-seconds", 0.01)
    rows = record["rows"]
    mapper = [row for row in rows if "step" in row]
    loader = [row for row in rows if "workers" in row]
    draft = [row for row in rows if "decoded" in row]
    batch = [row for row in rows if "device" in row]
    assert len(mapper) + len(batch) + len(loader) + len(draft) == len(rows)

    found = [(row["files"], row["host"], row["step"]) for row in mapper]
    assert found == list(product(("jpg", "png"), HOSTS, STEPS))
    for begin in range(0, len(mapper), len(STEPS)):
        *steps, whole = mapper[begin : begin + len(STEPS)]
        assert sum(row["share"] for row in steps) == pytest.approx(1)
        assert whole["seconds"]["median"] > 0
        compared = [row["step"] for row in (*steps, whole) if row["plain_over"]]
        assert compared == ["decode", "all"]

    assert [row["host"] for row in batch] == HOSTS
    for row in batch:
        assert row["seconds"]["median"] > 0 and row["plain_over"] > 0 and row["error"] == 0

    found = [(row["files"], row["host"], row["workers"]) for row in loader]
    assert found == list(product(("jpg", "png"), HOSTS, (0, 1)))
    for row in loader:
        assert row["images_per_second"]["median"] > 0
        assert 0 < row["waiting_share"]["low"] <= row["waiting_share"]["high"] < 1
        assert row["workers"] or row["over_first"] == 1

    same, reduced = draft
    assert same["decoded"] == "60x80" and same["largest_difference"] == 0
    assert reduced["decoded"] == reduced["resized"] == "60x80"
    assert 0 < reduced["mean_difference"] < reduced["largest_difference"]


def test_pictures_are_photographs_of_coco_in_size(tmp_path):
    dataset = program.write_photos(tmp_path, 12, size=(480, 640), kind="jpg")
    upright = [record["height"] > record["width"] for record in dataset.records]
    assert upright == [index % 3 == 2 for index in range(12)]
    objects = [len(record["annotations"]) for record in dataset.records]
    assert 4 < np.mean(objects) < 10
    kilobytes = [Path(record["file_name"]).stat().st_size / 1000 for record in dataset.records]
    assert 80 < np.mean(kilobytes) < 250  # COCO's are of 160
    for record in dataset.records:
        with Image.open(record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
        for entry in record["annotations"]:
            x, y, w, h = entry["bbox"]
            assert min(x, y) >= 0 and min(w, h) > 0
            assert x + w <= record["width"] and y + h <= record["height"]


def test_a_loader_waits_for_nothing_behind_a_long_step(monkeypatch, tmp_path, config):
    records = program.write_photos(tmp_path, 3, size=(60, 80), kind="png").records
    monkeypatch.setattr("sys.argv", ["data.py", *map(str, (*TINY, "--step-seconds", 0.3))])
    args = program.parse()
    mappers = program.importable()[0]
    # A device other than the CPU is stood in for by sleeping.
    args.device = "cuda"
    seconds, waiting = program.load(mappers, records, 1, args)
    assert 0 < seconds < 0.3
    assert waiting < program.load(mappers, records, 0, args)[1]
