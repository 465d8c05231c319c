"""Detectron2's own Faster R-CNN under this project's data, trainer, checkpoints and evaluation."""

import re

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_backbone, build_model  # noqa: E402

import smca.d2  # noqa: E402
from smca.checkpoints import load, write_checkpoint  # noqa: E402
from smca.config import load_cfg  # noqa: E402

CONFIG = "configs/baselines/faster_rcnn_FPN_R50_36ep.yaml"
SMALL = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.DEVICE", "cpu"),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 3, "INPUT.MIN_SIZE_TEST", 64),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.ENABLED", False),
]


@pytest.fixture
def run(train_net, shapes, tmp_path):
    data = [[name, *files] for name, files in shapes.items()]

    def start(*arguments):
        return train_net(
            *("--engine", "detectron2", "--config-file", CONFIG, *arguments, *SMALL),
            *("DATASETS.COCO_FORMAT", data, "DATASETS.TRAIN", ("train",)),
            *("DATASETS.TEST", ("val",), "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
            *("SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (2,), "OUTPUT_DIR", tmp_path / "out"),
        )

    return start


def test_it_trains_and_evaluates(run, tmp_path):
    run("MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_RANDOM", True)
    output = run("--eval-only", "MODEL.WEIGHTS", tmp_path / "out" / "model_final.pth")
    assert re.search(r"copypaste: [\d.]+", output)
    optimizer = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["trainer"]
    groups = optimizer["_trainer"]["optimizer"]["param_groups"]
    assert {group["momentum"] for group in groups} == {0.9}


def test_the_native_host_says_who_can_run_it(train_net):
    with pytest.raises(AssertionError, match="GeneralizedRCNN.*--engine detectron2"):
        train_net("--engine", "native", "--config-file", CONFIG)


def test_resnet_weights_go_below_the_pyramid(tmp_path):
    cfg = get_cfg()
    smca.d2.add_smca_config(cfg)
    cfg = load_cfg(cfg, CONFIG, SMALL)
    model = build_model(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    resnet = build_backbone(cfg)
    path = tmp_path / "resnet.pth"
    write_checkpoint({"model": resnet.state_dict()}, path)
    load(model, path)
    own = model.backbone.bottom_up.state_dict()
    torch.testing.assert_close(own, resnet.state_dict(), rtol=0, atol=0)
