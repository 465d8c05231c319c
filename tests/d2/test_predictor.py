"""Predictors in both hosts, and of Detectron2's own models."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.engine import DefaultPredictor  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

import smca.d2  # noqa: E402
from smca.checkpoints import write_checkpoint  # noqa: E402
from smca.config import ConfigError, load_cfg  # noqa: E402
from smca.modeling import build_detector  # noqa: E402

FASTER_RCNN = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.DEVICE", "cpu"),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("INPUT.MIN_SIZE_TEST", 64, "TEST.DETECTIONS_PER_IMAGE", 9),
]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [
        np.asarray(Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize(size))
        for size in ((150, 100), (60, 90))
    ]


def randomise(model, noise):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(noise * torch.randn(parameter.shape))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("backbone", ["build_smca_resnet_backbone", "build_resnet_backbone"])
def test_both_hosts_find_the_same(tiny_config, images, tmp_path, order, backbone):
    opts = ["INPUT.FORMAT", order, "INPUT.MIN_SIZE_TEST", 80, "MODEL.RESNETS.DEPTH", 50]
    cfg = tiny_config(*opts, "MODEL.RESNETS.STEM_TYPE", "basic", "DATASETS.COCO_FORMAT", [])
    detector = build_detector(cfg)
    randomise(detector, 0.3)
    content = {"model": detector.state_dict(), "class_names": ["a", "b", "c"]}
    write_checkpoint(content, tmp_path / "model.pth")
    ours = smca.Predictor(cfg, tmp_path / "model.pth")
    cfg.MODEL.BACKBONE.NAME = backbone
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    detectron2_cfg = get_cfg()
    smca.d2.add_smca_config(detectron2_cfg)
    load_cfg(detectron2_cfg, str(tmp_path / "tiny.yaml"))
    for config in (cfg, tmp_path / "tiny.yaml", detectron2_cfg):
        theirs = smca.Predictor(config, tmp_path / "model.pth", engine="detectron2")
        assert isinstance(theirs.detector, smca.d2.SMCA)
        # Of Detectron2's backbones an image's padding, beside larger ones, has a say in its maps.
        batches = [images] if backbone == "build_smca_resnet_backbone" else [[x] for x in images]
        found = [result for batch in batches for result in theirs(batch)]
        expected = [result for batch in batches for result in ours(batch)]
        for one, other in zip(found, expected, strict=True):
            assert len(one) == len(other) == 30
            assert_close(one.boxes, other.boxes, rtol=0, atol=1e-5)
            assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
            assert_close(one.labels, other.labels)
            assert one.class_names == other.class_names
    for one, other in zip(theirs.inputs(images)[:2], ours.inputs(images)[:2], strict=True):
        assert_close(one, other)


def test_detectron2s_own_models_find_what_its_own_predictor_finds(images, tmp_path):
    cfg = get_cfg()
    smca.d2.add_smca_config(cfg)
    load_cfg(cfg, smca.model_zoo.config_file("baselines/faster_rcnn_FPN_R50_36ep"), FASTER_RCNN)
    model = build_model(cfg)
    randomise(model, 0.01)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    reference = DefaultPredictor(cfg)
    predictor = smca.Predictor(
        "baselines/faster_rcnn_FPN_R50_36ep",
        cfg.MODEL.WEIGHTS,
        opts=[*FASTER_RCNN, "DATASETS.TEST", ()],
        engine="detectron2",
    )
    for image in images:
        expected = reference(image[..., ::-1])["instances"]
        found = predictor(image)
        assert len(found) > 0
        assert_close(found.boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-4)
        assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        assert_close(found.labels, expected.pred_classes)
    assert predictor.class_names == ("0", "1", "2")
    batch, sizes, _ = predictor.inputs(images)
    assert batch.shape == (2, 3, 96, 96)  # multiples of 32
    assert [tuple(size) for size in sizes] == [(64, 96), (96, 64)]


def test_an_unknown_architecture(images, tiny_config, tmp_path):
    write_checkpoint({"model": {"a": torch.ones(1)}}, tmp_path / "model.pth")
    opts = ["MODEL.META_ARCHITECTURE", "Oracle"]
    with pytest.raises(
        ConfigError, match="'Oracle'; it must be 'SMCA', 'TSPFCOS' or one of Detectron2's"
    ):
        smca.Predictor(tiny_config(), tmp_path / "model.pth", opts=opts, engine="detectron2")
