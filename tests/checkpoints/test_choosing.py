"""The file that a trained model is used with."""

import pytest
import torch
import yaml

from smca.checkpoints.choosing import trained_weights
from smca.config import ConfigError, get_cfg
from smca.errors import CheckpointError

IMAGENET = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"


@pytest.fixture
def run(tmp_path):
    """``run(start, "model_final", ...)``: the folder of a run that started from ``start``.

    The last of the files is what last_checkpoint names, if ``tagged``.
    """

    def make(start, *files, tagged=True, lazy=False):
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        config = {"train": {"init_checkpoint": start}} if lazy else {"MODEL": {"WEIGHTS": start}}
        (folder / "config.yaml").write_text(yaml.dump(config))
        for name in files:
            torch.save({"model": {"weight": torch.ones(1)}}, folder / f"{name}.pth")
        if tagged:
            (folder / "last_checkpoint").write_text(f"{files[-1]}.pth")
        return folder

    return make


def choose(weights, output="elsewhere", **arguments):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(weights), str(output)
    return trained_weights(cfg, **arguments)


@pytest.mark.parametrize("start", ["", IMAGENET, "coco.pth", "resnet50-0676ba61.pth"])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_run_has_its_own(run, start, lazy):
    folder = run(start, "model_0000009", "model_0000019", lazy=lazy)
    for place in ({"config_file": str(folder / "config.yaml")}, {"output": folder}):
        found = choose(start, **place)
        assert found.path == str(folder / "model_0000019.pth")
        assert found.why == "the last checkpoint of the run" + (
            f", and not {start}" if start else ""
        )


def test_another_spelling_of_what_the_run_started_from(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run(str(tmp_path / "coco.pth"), "model_final")
    assert choose("coco.pth", folder).path == str(folder / "model_final.pth")
    assert choose("other/coco.pth", folder).path == "other/coco.pth"


def test_without_a_tag_it_is_the_final_one(run):
    folder = run("coco.pth", "model_0000009", "model_final", tagged=False)
    assert choose("coco.pth", folder).path == str(folder / "model_final.pth")
    (folder / "model_final.pth").unlink()
    assert choose("coco.pth", folder) == ("coco.pth", "MODEL.WEIGHTS of the config")


def test_a_damaged_one_is_passed_over(run):
    folder = run(IMAGENET, "model_0000009", "model_final")
    (folder / "model_final.pth").write_bytes(b"PK")
    assert choose(IMAGENET, folder).path == str(folder / "model_0000009.pth")
    (folder / "model_0000009.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint: model_final.pth: .*; model_0"):
        choose(IMAGENET, folder)


def test_what_is_named_is_taken(run):
    folder = run("coco.pth", "model_final")
    assert choose("coco.pth", folder, named="mine.pth").path == "mine.pth"
    # The file that the run started from, too, to see how far it has come.
    for opts in (["MODEL.WEIGHTS", "coco.pth"], ["train.init_checkpoint=coco.pth"]):
        assert choose("coco.pth", folder, opts=opts) == ("coco.pth", "as named")
    # The config is one's own and names another file, or one of the run's.
    for path in ("released.pth", folder / "model_best.pth"):
        assert choose(path, folder) == (str(path), "MODEL.WEIGHTS of the config")
    run(str(folder / "model_best.pth"), "model_final")
    assert choose(folder / "model_best.pth", folder).path == str(folder / "model_best.pth")


@pytest.mark.parametrize(
    "start", ["", IMAGENET, "https://download.pytorch.org/models/resnet101-63fe2227.pth"]
)
def test_where_nothing_was_trained_there_is_nothing(start, tmp_path):
    reason = f"{start} is a backbone alone" if start else "MODEL.WEIGHTS is empty"
    for arguments in ({}, {"opts": ["MODEL.WEIGHTS", start]}, {"named": start}):
        with pytest.raises(ConfigError, match=f"no trained weights: {reason}; name a checkpoint"):
            choose(start, tmp_path, **arguments)


@pytest.mark.parametrize("content", ["", "MODEL: 3", "- a", "MODEL: {WEIGHTS: [1]}", "{"])
def test_a_run_whose_config_says_nothing(run, content):
    folder = run("coco.pth", "model_final")
    (folder / "config.yaml").write_text(content)
    assert choose("coco.pth", folder).path == "coco.pth"
    assert choose("", folder).path == str(folder / "model_final.pth")
