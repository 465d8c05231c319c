"""Annotation files that are damaged or odd, through the readers of training, evaluation and checks.

What comes out is a dataset that says of itself what the file says, or a DatasetError that names the
file.
"""

import json
import logging
import math
import os
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odd_annotations import CONTENT, at, damaged, encoded, odd
from PIL import Image
from scored import scored

from dataset_checks.checks import check_dataset
from dataset_checks.summary import format_summary, summarise
from smca.data.coco import drop_bad_boxes, load_coco, usable_records
from smca.errors import DatasetError
from smca.structures import Detections


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images, with more in it and around it."""
    root = tmp_path_factory.mktemp("annotations")
    images = root / "images"
    (images / "more").mkdir(parents=True)
    for name, size in (("a.png", (10, 40)), ("b.png", (30, 20)), ("more/c.png", (8, 8))):
        Image.new("RGB", size).save(images / name)
    Image.new("RGB", (10, 40)).save(root / "a.png")
    os.mkfifo(images / "fifo")
    return root


def load(folder, data):
    """The dataset of a file with this content; or None where it was refused as it should be."""
    file = folder / "annotations.json"
    file.write_bytes(data)
    try:
        return load_coco("mine", str(file), str(folder / "images"))
    except DatasetError as error:
        message = str(error)
        assert "'mine'" in message and (str(file) in message or "image" in message)
        assert len(message) < 2000
        return None


@contextmanager
def warnings():
    """What the package warns of meanwhile."""
    said, logger = [], logging.getLogger("smca")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def check(dataset, content, folder, said):
    """The dataset says what the file says, and what it leaves out it has counted."""
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert dict(zip(dataset.category_ids, dataset.class_names, strict=True)) == names
    assert list(dataset.category_ids) == sorted(names)
    images = {entry["id"]: entry for entry in content["images"]}
    assert [record["image_id"] for record in dataset.records] == sorted(images)
    strays = 0
    expected = {image_id: [] for image_id in images}
    for entry in content["annotations"]:
        if entry["image_id"] in images:
            expected[entry["image_id"]].append(entry)
        else:
            strays += 1
    assert [m for m in said if "of images that" in m] == [
        f"{strays} annotations are of images that the file does not have"
    ] * bool(strays)
    root = os.path.join(folder, "images", "")
    for record in dataset.records:
        entry = images[record["image_id"]]
        assert record["file_name"] == os.path.normpath(os.path.join(root, entry["file_name"]))
        assert "\0" not in record["file_name"]
        assert (record["height"], record["width"]) == (entry["height"], entry["width"])
        assert record["height"] > 0 and type(record["height"]) is int
        wanted = [
            (str(entry["bbox"]), entry["category_id"], entry.get("iscrowd", 0))
            for entry in expected[record["image_id"]]
        ]
        found = [
            (str(entry["bbox"]), dataset.category_ids[entry["category_id"]], entry["iscrowd"])
            for entry in record["annotations"]
        ]
        assert found == wanted


def learned_from(dataset):
    """Boxes that training takes are real, and the others are counted."""
    total = sum(len(record["annotations"]) for record in dataset.records)
    with warnings() as said:
        records = drop_bad_boxes(dataset.records, "mine")
    boxes = [entry["bbox"] for record in records for entry in record["annotations"]]
    dropped = int(said[0].split("dropped ")[1].split()[0]) if said else 0
    assert len(boxes) + dropped == total
    if boxes:
        # x2 and y2 are made in float32.
        x, y, w, h = torch.tensor(boxes, dtype=torch.float32).T
        assert (x + w).isfinite().all() and (y + h).isfinite().all() and (w >= 0).all()
    if any(not entry["iscrowd"] for record in records for entry in record["annotations"]):
        kept = usable_records([("mine", dataset.records)], filter_empty=True)
        assert all(record["annotations"] for record in kept)


def evaluated(dataset, folder):
    """Every object is found; those that are none stay missed."""
    found = []
    for record in dataset.records:
        boxes, labels = [[0.0, 0.0, 1.0, 1.0]], [0]
        for entry in record["annotations"]:
            x, y, w, h = map(float, entry["bbox"])
            if not entry["iscrowd"] and all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0:
                boxes.append([x, y, x + w, y + h])
                labels.append(entry["category_id"])
        boxes = torch.tensor(boxes, dtype=torch.float64).clamp(-3e38, 3e38)
        scores = torch.linspace(0.9, 0.1, len(labels))
        found.append((record["image_id"], Detections(boxes, scores, torch.tensor(labels))))
    result = scored(found, dataset, folder / "results")
    assert all(math.isnan(ap) or 0 <= ap <= 100.0001 for ap in result.values())
    classes = [key for key in result if key.startswith("AP-")]
    scored_with = any(record["annotations"] for record in dataset.records)
    assert bool(result) == scored_with
    assert len(classes) == len(dataset.class_names) * (scored_with and len(dataset.class_names) > 1)
    written = json.loads((folder / "results/coco_instances_results.json").read_text())
    assert {row["category_id"] for row in written} <= set(dataset.category_ids)
    assert {row["image_id"] for row in written} <= {r["image_id"] for r in dataset.records}


@pytest.mark.slow
@settings(max_examples=2000)
@given(odd())
@example(at(["annotations", 0, "bbox"], [1, 2, 10**400, 4]))
@example(at(["annotations", 0, "bbox"], [-1e39, 2, 2e39, 4]))
@example(at(["annotations", 0, "bbox"], [True, 2, 3, 4]))
@example(at(["annotations", 0, "iscrowd"], "0"))
@example(at(["annotations", 0, "image_id"], True))
@example(at(["images", 0, "file_name"], "../a.png"))
@example(at(["images", 0, "file_name"], "/etc/passwd"))
@example(at(["images", 0, "id"], 2**63))
@example(at(["categories", 0, "name"], "cross"))
def test_what_a_file_says_is_what_is_loaded_or_refused(folder, content):
    with warnings() as said:
        dataset = load(folder, encoded(content))
    if dataset is not None:
        check(dataset, content, folder, said)
        learned_from(dataset)


@settings(max_examples=1000)
@given(damaged())
@example(b"")
@example(json.dumps(CONTENT).encode("utf-16"))
@example(json.dumps(CONTENT).encode("utf-8-sig"))
@example(json.dumps(CONTENT).replace("30", "9" * 5000).encode())
def test_damaged_bytes_are_read_as_they_stand_or_refused(folder, data):
    dataset = load(folder, data)
    if dataset is not None:
        content = json.loads(data.decode("utf-8-sig"))
        with warnings() as said:
            load(folder, data)
        check(dataset, content, folder, said)
        learned_from(dataset)


@settings(max_examples=250)
@given(odd())
@example(at(["annotations", 0, "bbox"], [math.nan, 2.5, 3, 4]))
@example(at(["annotations", 2, "bbox"], [0, 0, math.inf, 8]))
@example(at(["annotations", 0, "area"], "large"))
@example(at(["annotations", 0, "area"], -5))
@example(at(["annotations", 1, "iscrowd"], True))
@example(at(["categories", 0, "name"], "cross"))
@example(at(["annotations"], []))
def test_an_evaluation_scores_every_file_that_loads(folder, content):
    dataset = load(folder, encoded(content))
    if dataset is not None:
        evaluated(dataset, folder)


@settings(max_examples=150)
@given(st.one_of(odd().map(encoded), damaged()))
def test_a_check_ends_with_findings_and_a_summary(folder, data):
    file = folder / "checked.json"
    file.write_bytes(data)
    checked = check_dataset("mine", str(file), str(folder / "images"), num_queries=2)
    refused = load(folder, data) is None
    assert not refused or any(finding.level == "ERROR" for finding in checked.findings)
    assert all(isinstance(entry, str) for found in checked.findings.values() for entry in found)
    summary = summarise(checked.records, checked.class_names)
    assert json.loads(json.dumps(summary)) == summary
    assert "objects" in format_summary(summary)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30, unique=True),
    seed=st.integers(0, 2**32 - 1),
)
@example(ids=list(range(-3, 14_997, 3)), seed=0)
@example(ids=[0], seed=2)
def test_category_ids_come_back_from_their_contiguous_index(folder, ids, seed):
    """1 to 5,000 of them, with gaps, negative, in any order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(ids)).tolist()
    used = [ids[i] for i in order[:20]]
    content = {
        "images": [{"id": 3, "file_name": "b.png", "height": 20, "width": 30}],
        "categories": [{"id": ids[i], "name": f"class {ids[i]}"} for i in order],
        "annotations": [
            {"image_id": 3, "category_id": category, "bbox": [number, 1, 5, 9 + number / 9]}
            for number, category in enumerate(used)
        ],
    }
    dataset = load(folder, encoded(content))
    assert dataset.category_ids == tuple(sorted(ids))
    (record,) = dataset.records
    boxes = torch.tensor([entry["bbox"] for entry in record["annotations"]], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([entry["category_id"] for entry in record["annotations"]])
    assert [dataset.class_names[label] for label in labels] == [f"class {c}" for c in used]
    detections = Detections(boxes, torch.linspace(0.9, 0.2, len(labels)), labels)
    result = scored([(3, detections)], dataset, folder / "results")
    assert result["AP"] == pytest.approx(100)
    if len(ids) > 1:
        real = {key: ap for key, ap in result.items() if key.startswith("AP-") and ap == ap}
        assert real == {f"AP-class {c}": pytest.approx(100) for c in used}
    written = json.loads((folder / "results/coco_instances_results.json").read_text())
    assert Counter(row["category_id"] for row in written) == Counter(used)
