"""Runs of LazyConfigs: the same training as that of YAML, and changes that are refused."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.config import LazyConfig, instantiate  # noqa: E402
from lazy_configs import FOLDER, TINY  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from smca.config import ConfigError, flatten  # noqa: E402
from smca.d2 import register_datasets  # noqa: E402
from smca.d2.lazy import PLACES, LazyTrainer, read, run, trainer_config  # noqa: E402
from smca.d2.trainer import Trainer  # noqa: E402
from smca.engine.prepare import prepare  # noqa: E402
from smca.errors import DatasetError  # noqa: E402

PROGRAM = "tools/lazyconfig_train_net.py"


@pytest.fixture
def tiny(lazy_data):
    """``tiny(folder, "key=value", ...)``: a trainer and its config."""

    def build(folder, *overrides):
        changes = [*TINY, *lazy_data, f"train.output_dir={folder}", *overrides]
        lazy = read(str(FOLDER / "quickstart.py"), changes)
        cfg = prepare(trainer_config(lazy))
        register_datasets(cfg)
        return LazyTrainer.of(lazy), cfg

    return build


def train(trainer, cfg, *, resume=False):
    """The last checkpoint of a run."""
    running = trainer(cfg)
    running.resume_or_load(resume=resume)
    running.train()
    return torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)


def assert_same_state(found, expected):
    assert set(found) == set(expected)
    assert_close(found["model"], expected["model"], rtol=0, atol=0)
    optimizers = [part["trainer"]["_trainer"]["optimizer"] for part in (found, expected)]
    assert_close(*(part["state"] for part in optimizers), rtol=0, atol=0)
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    assert found["trainer"]["hooks"] == expected["trainer"]["hooks"]


def go_back(source, target):
    """A copy of a finished run, as it was after the second iteration."""
    shutil.copytree(source, target)
    for name in ("model_0000003.pth", "model_final.pth", "model_best.pth"):
        (target / name).unlink()
    (target / "last_checkpoint").write_text("model_0000001.pth")
    return str(target)


def test_same_training_and_either_goes_on_with_the_others_run(d2_config, tiny, tmp_path):
    expected = train(Trainer, d2_config("OUTPUT_DIR", str(tmp_path / "yaml")))
    assert_same_state(train(*tiny(tmp_path / "lazy")), expected)

    theirs = go_back(tmp_path / "lazy", tmp_path / "yaml_goes_on")
    assert_same_state(train(Trainer, d2_config("OUTPUT_DIR", theirs), resume=True), expected)
    ours = go_back(tmp_path / "yaml", tmp_path / "lazy_goes_on")
    assert_same_state(train(*tiny(ours), resume=True), expected)


@pytest.mark.slow
def test_the_program(d2_config, lazy_data, program, tmp_path):
    out = tmp_path / "out"
    lazy = ["--config-file", FOLDER / "quickstart.py"]
    changes = [*TINY, *lazy_data, "model.heads.num_logits=0"]
    program(PROGRAM, *lazy, *changes, f"train.output_dir={out}").done()
    parts = go_back(out, tmp_path / "parts")
    program(PROGRAM, *lazy, "--resume", *changes, f"train.output_dir={parts}").done()
    expected = train(Trainer, d2_config("OUTPUT_DIR", str(tmp_path / "yaml")))
    for folder in (out, tmp_path / "parts"):
        assert_same_state(torch.load(folder / "model_final.pth", weights_only=True), expected)

    # The run's own file is a LazyConfig, in which all has been filled in.
    config = out / "config.yaml"
    before = config.read_bytes()
    assert LazyConfig.load(str(config)).model.heads.num_logits == 3
    results = out / "inference" / "coco_instances_results.json"
    written = results.read_bytes()
    results.unlink()
    weights = f"train.init_checkpoint={out}/model_final.pth"
    printed = program(PROGRAM, "--config-file", config, "--eval-only", weights).done()
    assert "Average Precision" in printed
    assert results.read_bytes() == written
    assert config.read_bytes() == before


def test_grey_values_of_12_bits_fill_in_their_key(shapes, program, tmp_path):
    json_file, folder = shapes["val"]
    for file in Path(folder).iterdir():
        values = np.asarray(Image.open(file).convert("L"), dtype=np.uint16)
        Image.fromarray(values * 16).save(tmp_path / file.name)
    data = [
        f"dataloader.coco_format=[[grey,{json_file},{tmp_path}]]",
        *("dataloader.train.num_workers=0", f"train.output_dir={tmp_path / 'out'}"),
        *("dataloader.train.dataset.names=grey", "dataloader.test.dataset.names=grey"),
    ]
    lazy = ["--config-file", FOLDER / "quickstart.py"]
    printed = program(PROGRAM, *lazy, *TINY, *data, "train.max_iter=1").done()
    assert "INPUT.GREY_BITS: 12, as in" in printed
    dataloader = LazyConfig.load(str(tmp_path / "out/config.yaml")).dataloader
    for part in (dataloader.train, dataloader.test):
        assert instantiate(part.mapper).grey_bits == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.max_itr=5"], "'train.max_itr=5' cannot be set.*Key 'max_itr' is not in struct"),
        (["dataloader.tain.num_workers=0"], "Key 'tain' is not in struct"),
        (["SOLVER.MAX_ITER", "5"], "changes are path.key=value"),
        (["train.log_period=5"], "'train.log_period=5' is for Detectron2's own"),
        (["train.max_iter=0"], "train.max_iter is 0; it must be at least 1"),
        (["train.max_iter=many"], "train.max_iter"),
        (["dataloader.train.dataset.names=nothing"], "unknown dataset 'nothing'"),
        (
            ["dataloader.evaluator.max_dets_per_image=300"],
            r"max_dets_per_image is 300; it must be at most model\.max_detections \(100\)",
        ),
    ],
)
def test_changes_that_cannot_work(changes, message, tmp_path):
    arguments = {"num_gpus": None, "num_machines": None, "machine_rank": None, "dist_url": "auto"}
    opts = [f"train.output_dir={tmp_path}", "dataloader.coco_format=[[shapes_val,a,b]]", *changes]
    args = argparse.Namespace(
        config_file=str(FOLDER / "quickstart.py"),
        opts=opts,
        eval_only=False,
        resume=False,
        **arguments,
    )
    with pytest.raises((ConfigError, DatasetError), match=message):
        run(args)


def test_classes_that_are_not_the_datas(tiny, tmp_path):
    trainer, cfg = tiny(tmp_path / "out", "model.heads.num_logits=5")
    with pytest.raises(DatasetError, match="NUM_CLASSES is 5, but dataset 'train' has 3 classes"):
        trainer(cfg)


@pytest.mark.parametrize("name", ["nothing.py", "../quickstart.yaml"])
def test_files_that_are_no_lazy_configs(name):
    with pytest.raises(ConfigError, match="does not exist|no LazyConfig"):
        read(str(FOLDER / name), [])


def test_arguments_may_be_added_to_a_part():
    lazy = read(str(FOLDER / "smca_R50_50ep.py"), ["model.decoder.beta=4.0"])
    assert instantiate(lazy.model.decoder).layers[0].prior.beta == 4.0


def test_every_key_of_train_has_a_reader():
    keys = flatten(
        OmegaConf.to_container(LazyConfig.load(str(FOLDER / "common" / "train.py")).train)
    )
    read_here = {place.removeprefix("train.") for place in PLACES.values()}
    # Detectron2's default_setup reads these, and its own program the others.
    setup = {"cudnn_benchmark", "float32_precision"}
    assert {key for key in keys if not key.startswith(("ddp.", "log_period"))} <= read_here | setup
