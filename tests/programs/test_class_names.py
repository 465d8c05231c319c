"""A model's classes are those of the same names in the data, in whatever order."""

import json
from pathlib import Path

import pytest
import torch
from distinct_detector import distinct_detector

import smca
from smca.checkpoints import write_checkpoint

NAMES = ["circle", "rectangle", "triangle"]


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    detector = distinct_detector(tiny_config())
    write_checkpoint({"model": detector.state_dict(), "class_names": NAMES}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


@pytest.fixture
def with_classes(shapes, tmp_path):
    """``with_classes("val", {"circle": 9, ...}, rename={})``: the split with other category ids.

    Classes that are not named are left out, with their boxes.
    """

    def write(split, ids, rename=None):
        content = json.loads(Path(shapes[split][0]).read_text())
        name_of = {category["id"]: category["name"] for category in content["categories"]}
        content["categories"] = [
            {"id": number, "name": (rename or {}).get(name, name)} for name, number in ids.items()
        ]
        content["annotations"] = [
            entry | {"category_id": ids[name_of[entry["category_id"]]]}
            for entry in content["annotations"]
            if name_of[entry["category_id"]] in ids
        ]
        path = tmp_path / f"{split}{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps(content))
        return [split, str(path), shapes[split][1]]

    return write


@pytest.fixture
def evaluate(program, config_file, checkpoint, engine, tmp_path):
    """``evaluate(dataset)``: what is printed, and the results by class names."""

    def run(dataset, *opts):
        options = ["DATASETS.COCO_FORMAT", [dataset], "DATASETS.TRAIN", (), *opts]
        config = config_file(*options)
        flags = ["--engine", engine, "--config-file", config, "--eval-only"]
        printed = program("train_net.py", *flags, "MODEL.WEIGHTS", checkpoint)
        if printed.returncode:
            return printed.last, []
        names = {c["id"]: c["name"] for c in json.loads(Path(dataset[1]).read_text())["categories"]}
        results = json.loads((tmp_path / "out/inference/coco_instances_results.json").read_text())
        return printed.output, [{**r, "category_id": names[r["category_id"]]} for r in results]

    return run


def scores(printed):
    """``{"AP": ..., "AP-circle": ...}`` of the line that reports an evaluation."""
    line = next(line for line in printed.splitlines() if "val: AP " in line)
    words = line.partition("val: ")[2].split()
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_order_of_classes_does_not_matter(evaluate, with_classes):
    first, expected = evaluate(with_classes("val", dict(zip(NAMES, (1, 2, 3), strict=True))))
    other, found = evaluate(with_classes("val", dict(zip(NAMES, (30, 7, 20), strict=True))))
    assert len(expected) > 50 and found == expected
    assert scores(other) == scores(first)


@pytest.mark.parametrize("number", [0, 3])
def test_a_file_with_some_of_the_classes_scores_those(evaluate, with_classes, number):
    ids = dict(zip(NAMES, (1, 2, 3), strict=True))
    whole, expected = evaluate(with_classes("val", ids))
    printed, found = evaluate(
        with_classes("val", {"triangle": 1, "circle": 2}), "MODEL.SMCA.NUM_CLASSES", number
    )
    assert found == [result for result in expected if result["category_id"] != "rectangle"]
    for name in ("circle", "triangle"):
        assert scores(printed)[f"AP-{name}"] == scores(whole)[f"AP-{name}"]
    assert "lacks these classes of the model, whose detections are left out: rectangle" in printed


def test_classes_that_the_model_does_not_know_are_listed(evaluate, with_classes):
    ids = dict(zip(NAMES, (1, 2, 3), strict=True))
    printed, found = evaluate(with_classes("val", ids, rename={"circle": "disc"}))
    assert "does not know, whose objects count as missed: disc" in printed
    assert {result["category_id"] for result in found} == {"rectangle", "triangle"}
    assert float(scores(printed)["AP-disc"]) == 0
    line, _ = evaluate(with_classes("val", ids, rename=dict(zip(NAMES, "xyz", strict=True))))
    assert "has the classes x, y, z, the model knows circle, rectangle, triangle" in line


def test_demo_writes_the_ids_of_the_file(program, config_file, checkpoint, with_classes, tmp_path):
    dataset = with_classes("val", {"triangle": 10, "circle": 20})
    config = config_file("DATASETS.COCO_FORMAT", [dataset], "DATASETS.TRAIN", ())
    image = next(Path(dataset[2]).iterdir())
    output = ["--output", tmp_path / "pictures", "--save-json", tmp_path / "r.json"]
    model = ["--config-file", config, "--weights", checkpoint]
    program("demo.py", *model, "--input", image, *output, "--threshold", 0).done()
    result = smca.Predictor(config, checkpoint)(image)
    expected = [{"triangle": 10, "circle": 20}.get(name) for name in result.class_names]
    found = [entry["category_id"] for entry in json.loads((tmp_path / "r.json").read_text())]
    assert found == [number for number in expected if number is not None]
    assert set(found) == {10, 20}


def test_demo_warns_of_a_dataset_with_none_of_the_classes(
    program, config_file, checkpoint, with_classes, tmp_path, caplog
):
    ids = dict(zip(NAMES, (10, 20, 30), strict=True))
    dataset = with_classes("val", ids, rename=dict(zip(NAMES, "xyz", strict=True)))
    config = config_file("DATASETS.COCO_FORMAT", [dataset], "DATASETS.TRAIN", ())
    image = next(Path(dataset[2]).iterdir())
    output = ["--output", tmp_path / "pictures", "--save-json", tmp_path / "r.json"]
    model = ["--config-file", config, "--weights", checkpoint]
    program("demo.py", *model, "--input", image, *output, "--threshold", 0).done()
    assert "none is the same; give the 'categories'" in caplog.text
    assert "all ids in the results count from 1" in caplog.text
    entries = json.loads((tmp_path / "r.json").read_text())
    assert {entry["category_id"] for entry in entries} == {1, 2, 3}


def test_training_takes_classes_by_name(train_net, config_file, with_classes, engine, tmp_path):
    """Two training files and a test set, in one order or each in its own."""
    weights, printed = [], []
    for orders in ((1, 2, 3), (1, 2, 3)), ((2, 3, 1), (3, 2, 1)):
        ids = [dict(zip(NAMES, (1, 2, 3), strict=True))]
        ids += [dict(zip(NAMES, order, strict=True)) for order in orders]
        one, two, val = map(with_classes, ("train", "train", "val"), ids)
        two[0] = "more"
        config = config_file(
            *("DATASETS.COCO_FORMAT", [one, two, val], "DATASETS.TRAIN", ("train", "more")),
            *("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (1,), "SEED", 1),
        )
        printed.append(train_net("--engine", engine, "--config-file", config))
        weights.append(torch.load(tmp_path / "out/model_final.pth"))
    assert weights[0]["class_names"] == weights[1]["class_names"] == NAMES
    for name, tensor in weights[0]["model"].items():
        torch.testing.assert_close(weights[1]["model"][name], tensor, rtol=0, atol=0)
    assert scores(printed[1]) == scores(printed[0])


def test_a_class_that_one_file_lacks_is_named(program, config_file, with_classes, engine):
    ids = dict(zip(NAMES, (1, 2, 3), strict=True))
    fewer = {name: ids[name] for name in NAMES[:2]}
    two = ["more", *with_classes("train", fewer)[1:]]
    run = ["train_net.py", "--engine", engine, "--config-file"]
    for train, val, told in (
        ([with_classes("train", ids), two], ids, "'more' lacks the classes triangle of dataset"),
        ([with_classes("train", fewer)], ids, "DATASETS.TRAIN lacks the classes triangle of the"),
    ):
        config = config_file(
            *("DATASETS.COCO_FORMAT", [*train, with_classes("val", val)]),
            *("DATASETS.TRAIN", tuple(name for name, *_ in train), "MODEL.SMCA.NUM_CLASSES", 0),
        )
        ended = program(*run, config)
        assert ended.returncode == 2 and told in ended.last


def test_fine_tuning_copies_the_rows_of_known_classes(
    train_net, config_file, with_classes, checkpoint, engine, tmp_path
):
    ids = {"triangle": 1, "circle": 2, "rectangle": 3}
    frozen = ["SOLVER.BASE_LR", 1e-12, "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.MAX_ITER", 1]
    data = ["DATASETS.TEST", (), "MODEL.WEIGHTS", str(checkpoint), "SOLVER.STEPS", ()]
    before = torch.load(checkpoint)["model"]["heads.class_head.weight"]
    for rename, said, rows in (
        ({"circle": "disc"}, "taken by name from", {0: 2, 2: 1}),
        (dict(zip(NAMES, ("cat", "dog", "cow"), strict=True)), "not loaded, it starts anew", {}),
    ):
        dataset = with_classes("train", ids, rename)
        config = config_file("DATASETS.COCO_FORMAT", [dataset], *data, *frozen)
        printed = train_net("--engine", engine, "--config-file", config)
        assert f"class head {said}" in printed
        after = torch.load(tmp_path / "out/model_final.pth")
        weight = after["model"]["heads.class_head.weight"]
        for label in range(3):
            kept = [
                row for row in range(3) if torch.allclose(weight[label], before[row], atol=1e-6)
            ]
            assert kept == ([rows[label]] if label in rows else [])
    assert after["class_names"] == ["cow", "cat", "dog"]


def test_a_run_does_not_resume_with_other_classes(
    program, train_net, config_file, with_classes, engine
):
    run = ["--engine", engine, "--config-file"]
    ids = dict(zip(NAMES, (1, 2, 3), strict=True))
    short = ["DATASETS.TEST", (), "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()]
    train_net(*run, config_file("DATASETS.COCO_FORMAT", [with_classes("train", ids)], *short))
    other = with_classes("train", dict(zip(NAMES, (3, 2, 1), strict=True)))
    config = config_file("DATASETS.COCO_FORMAT", [other], *short, "SOLVER.MAX_ITER", 2)
    ended = program("train_net.py", *run, config, "--resume")
    assert ended.returncode == 2
    assert "knows the classes circle, rectangle, triangle, the data has triangle" in ended.last


def test_a_checkpoint_without_names_has_those_of_its_training_data(
    evaluate, with_classes, checkpoint
):
    """Where that is known; otherwise a warning says whose order is taken."""
    train = with_classes("train", dict(zip(NAMES, (1, 2, 3), strict=True)))
    val = with_classes("val", dict(zip(NAMES, (30, 7, 20), strict=True)))
    _, expected = evaluate(val)
    write_checkpoint({"model": torch.load(checkpoint)["model"]}, checkpoint)
    known = ["DATASETS.COCO_FORMAT", [train, val], "DATASETS.TRAIN", ("train",)]
    assert evaluate(val, *known)[1] == expected
    printed, found = evaluate(val)
    assert "class names are not known: those of val are taken, in their order" in printed
    assert len(found) == len(expected) and found != expected
