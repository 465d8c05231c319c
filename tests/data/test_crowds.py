"""Annotations that are crowds, which training leaves out: how many, and where it is a mistake."""

import json
from pathlib import Path

import pytest

from dataset_checks import findings
from dataset_checks.checks import check_dataset


@pytest.fixture
def crowds(shapes, tmp_path):
    """``crowds(n)``: an annotation file whose first n annotations are crowds, and their number."""

    def write(count):
        content = json.loads(Path(shapes["train"][0]).read_text())
        for entry in content["annotations"][:count]:
            entry["iscrowd"] = 1
        path = tmp_path / "crowds.json"
        path.write_text(json.dumps(content))
        return str(path), len(content["annotations"])

    return write


def train(program, engine, config_file, shapes, json_file, *opts):
    sets = [["mine", json_file, shapes["train"][1]]]
    flags = ["--engine", engine, "--config-file", config_file(), "DATASETS.COCO_FORMAT", sets]
    short = ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()]
    names = ["DATASETS.TRAIN", ("mine",), "DATASETS.TEST", ()]
    return program("train_net.py", *flags, *short, *names, *opts)


@pytest.mark.parametrize("filter_empty", [True, False])
def test_nothing_but_crowds_is_refused(program, engine, config_file, shapes, crowds, filter_empty):
    json_file, total = crowds(None)
    opts = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", filter_empty]
    ended = train(program, engine, config_file, shapes, json_file, *opts)
    assert ended.returncode == 2 and ended.last == (
        f"DatasetError: DATASETS.TRAIN (mine): all {total} annotations are crowds (iscrowd 1), "
        "which training leaves out; set iscrowd 0 where a box holds one object"
    )


@pytest.mark.parametrize(("count", "level"), [(1, "INFO"), (8, "WARNING")])
def test_training_says_how_many(program, engine, config_file, shapes, crowds, count, level):
    json_file, total = crowds(count)
    printed = train(program, engine, config_file, shapes, json_file).done()
    (line,) = [line for line in printed.splitlines() if "are crowds" in line]
    # Detectron2's log does not name the level INFO.
    assert (level == "WARNING") == ("WARNING" in line)
    assert f"mine: {count} of {total} annotations are crowds" in line


def test_the_checker_says_how_bad_it_is(shapes, crowds):
    for count, finding in (
        (0, None),
        (1, findings.CROWDS),
        (8, findings.MANY_CROWDS),
        (None, findings.ALL_CROWDS),
    ):
        json_file, total = crowds(count)
        found = check_dataset("mine", json_file, shapes["train"][1], num_queries=99).findings
        told = {f for f in found if "crowds" in f.what}
        assert told == {finding} - {None} and (count is None or count <= total)
