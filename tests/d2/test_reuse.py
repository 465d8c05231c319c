"""Another Detectron2 project trains the model with Detectron2's own trainer."""

import json

import pytest
import torch

pytest.importorskip("detectron2")

PROJECT = """
import sys

from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
import smca.d2
from smca import add_smca_config

register_coco_instances("theirs", {}, *sys.argv[1:3])
cfg = get_cfg()
add_smca_config(cfg)
cfg.MODEL.META_ARCHITECTURE = "SMCA"
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.BACKBONE.FREEZE_RANDOM = True
cfg.MODEL.RESNETS.DEPTH = 18
cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
cfg.MODEL.SMCA.NUM_CLASSES = 3
cfg.MODEL.SMCA.HIDDEN_DIM = 32
cfg.INPUT.MIN_SIZE_TRAIN = (64,)
cfg.DATASETS.TRAIN = ("theirs",)
cfg.DATALOADER.NUM_WORKERS = 0
cfg.SOLVER.IMS_PER_BATCH = 2
cfg.SOLVER.BASE_LR = 1e-5
cfg.SOLVER.MAX_ITER = 2
cfg.SOLVER.STEPS = ()
cfg.OUTPUT_DIR = sys.argv[3]


class Trainer(DefaultTrainer):
    @classmethod
    def build_optimizer(cls, cfg, model):
        return smca.d2.build_optimizer(cfg, model)


Trainer(cfg).train()
"""


@pytest.mark.slow
def test_another_project_reuses_the_model(shapes, start_program, tmp_path):
    script = tmp_path / "project.py"
    script.write_text(PROJECT)
    start_program(*shapes["train"], tmp_path / "out", script=script).done()
    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    assert any("total_loss" in json.loads(line) for line in lines)
    model = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    assert model["heads.class_head.weight"].shape == (3, 32)
