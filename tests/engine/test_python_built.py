"""Trainers built in Python, without the program: what they obey, and what they refuse."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import needs_detectron2
from PIL import Image

import smca
from smca import hosts
from smca.config import ConfigError, load_cfg, validate
from smca.training.solver import build_optimizer


@pytest.fixture
def build(engine, config_file):
    """``build("KEY", value, ...)``: a trainer of each host, made as users make it."""

    def make(*opts, kind=None):
        file = config_file(*opts, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())
        cfg = smca.get_cfg()
        if engine == "detectron2":
            from detectron2.config import get_cfg

            cfg = get_cfg()
            smca.add_smca_config(cfg)
        load_cfg(cfg, file)
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        if engine == "detectron2":
            hosts.load("detectron2", "datasets").register_datasets(cfg)
        return (kind or hosts.load(engine, "trainer").Trainer)(cfg)

    return make


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"),
        ("SOLVER.WARMUP_METHOD", "exponential"),
        ("SOLVER.OPTIMIZER", "Lion"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"),
        ("TEST.AUG.ENABLED", True),
        ("TEST.PRECISE_BN.ENABLED", True),
        ("MODEL.MASK_ON", True),
        ("MODEL.KEYPOINT_ON", True),
        ("MODEL.LOAD_PROPOSALS", True),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]),
        ("FLOAT32_PRECISION", "half"),
        ("SOLVER.NESTEROV", True),
    ],
)
def test_keys_that_no_trainer_reads_are_refused(build, key, value):
    with pytest.raises(ConfigError, match=re.escape(key)):
        build(key, value)


def test_samplers_of_detectron2_are_refused(build):
    with pytest.raises(ConfigError, match=r"DATALOADER\.SAMPLER_TRAIN is 'RepeatFactor"):
        build("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler").train()


def test_a_home_folder(build, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home/run").mkdir(parents=True)
    trainer = build()
    cfg = trainer.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = "~/run"
    trainer = type(trainer)(cfg)
    assert trainer.checkpointer.save_dir == str(tmp_path / "home/run")
    assert not (tmp_path / "~").exists()


def test_grey_values_of_12_bits(build, shapes, tmp_path):
    folder = tmp_path / "grey"
    folder.mkdir()
    for number, path in enumerate(sorted(Path(shapes["train"][1]).iterdir())):
        grey = np.asarray(Image.open(path).convert("L"), dtype=np.uint16)
        # The first image is dark: it does not tell what is white.
        Image.fromarray(grey * 16 + 15 if number else grey).save(folder / path.name)
    files = [["train", shapes["train"][0], str(folder)], ["val", *shapes["val"]]]
    assert build("DATASETS.COCO_FORMAT", files).cfg.INPUT.GREY_BITS == 12
    assert build("DATASETS.COCO_FORMAT", files, "INPUT.GREY_BITS", 14).cfg.INPUT.GREY_BITS == 14


@needs_detectron2
@pytest.mark.parametrize("engine", ["detectron2"])
def test_a_method_of_the_users_own_reads_its_keys(engine, build):
    trainer = hosts.load("detectron2", "trainer").Trainer

    class Theirs(trainer):
        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            return torch.optim.lr_scheduler.PolynomialLR(optimizer, cfg.SOLVER.MAX_ITER)

    assert build("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", kind=Theirs).scheduler.total_iters == 2
    with pytest.raises(ConfigError, match=r"TEST\.AUG\.ENABLED"):
        build("TEST.AUG.ENABLED", True, kind=Theirs)


@needs_detectron2
def test_the_native_host_takes_every_default_of_detectron2(tmp_path):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    smca.add_smca_config(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    validate(load_cfg(smca.get_cfg(), str(tmp_path / "config.yaml")))


def test_biases_have_the_rate_and_decay_that_detectron2_gives_them(tiny_config):
    """As its ``get_default_optimizer_params``: the keys of biases come after those of norms."""
    changes = ("SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.5)
    sgd = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", True)
    cfg = tiny_config(*changes, *sgd, "SOLVER.BACKBONE_MULTIPLIER", 1.0)
    detector = smca.build_detector(cfg)
    optimizer = build_optimizer(cfg, detector)
    assert all(group["nesterov"] for group in optimizer.param_groups)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            group, is_bias = of[id(parameter)], name.rpartition(".")[2] == "bias"
            assert group["lr"] == pytest.approx(cfg.SOLVER.BASE_LR * (2.0 if is_bias else 1.0))
            assert (group["weight_decay"] == 0.5) == is_bias
