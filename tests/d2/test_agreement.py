"""The two hosts agree: the same boxes of an image file, the same losses of a batch."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.modeling import build_model

from smca.checkpoints import load, write_checkpoint
from smca.d2 import DetrDatasetMapper
from smca.data.coco import load_datasets
from smca.data.mapper import DetrMapper
from smca.modeling import build_detector, detect
from smca.modeling.detector import pad_images, pixel_statistics
from smca.training import SetCriterion, Targets

# Images of several sizes in a batch, so that there is padding.
OPTIONS = ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TEST", 90]
VARIANTS = [
    [],
    ["MODEL.SMCA.NUM_SCALES", 1, "MODEL.SMCA.IN_FEATURES", ["res5"], "MODEL.RESNETS.NORM", "GN"],
    ["MODEL.SMCA.LOSS.CLASSIFICATION", "softmax", "MODEL.SMCA.MODULATION.SCALE", "oriented"],
    ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES5_DILATION", 2],
    ["MODEL.SMCA.DECODER.NAME", "DETRDecoder", "MODEL.SMCA.LOSS.CLASSIFICATION", "softmax"],
    ["MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.DENOISING.ENABLED", True],
    [
        *("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.TWO_STAGE", True),
        *("MODEL.SMCA.ONE_TO_MANY.ENABLED", True),
    ],
    ["MODEL.SMCA.DECODER.NAME", "ConditionalDecoder", "MODEL.SMCA.LOSS.CLASSIFICATION", "mal"],
    [
        *("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder", "MODEL.SMCA.NECK.NORM", "GN"),
        *("MODEL.SMCA.DECODER.NAME", "DeformableDecoder", "MODEL.SMCA.DEFORMABLE.REFINE", True),
    ],
    [
        *("MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder", "MODEL.SMCA.NUM_SCALES", 4),
        *("MODEL.SMCA.IN_FEATURES", ["res3", "res4", "res5"]),
    ],
]
NAMES = [
    *("multi", "single", "softmax", "dilated", "detr", "anchored", "two stages", "conditional"),
    *("deformable", "depthwise"),
]


@pytest.fixture(params=VARIANTS, ids=NAMES)
def hosts(request, d2_config, tmp_path):
    """The config, and both models with weights that went from one to the other by a file."""
    cfg = d2_config(*OPTIONS, *request.param)
    torch.manual_seed(0)
    theirs = build_model(cfg)
    write_checkpoint({"model": theirs.state_dict()}, tmp_path / "model.pth")
    torch.manual_seed(1)
    ours = build_detector(cfg)
    load(ours, tmp_path / "model.pth", strict=True)
    return cfg, ours, theirs


def test_same_boxes(hosts):
    cfg, ours, theirs = hosts
    ours.eval(), theirs.eval()
    mean, std = pixel_statistics(cfg)
    (dataset,) = load_datasets(cfg, cfg.DATASETS.TEST)
    for record in dataset.records[:3]:
        sample = DetrMapper.from_config(cfg, is_train=False)(record)
        image = DetrDatasetMapper(cfg, is_train=False)(record)
        with torch.no_grad():
            images, sizes = pad_images([sample.image], mean=mean, std=std)
            (found,) = detect(
                ours(images, sizes),
                [(sample.height, sample.width)],
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                softmax=cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax",
            )
            (result,) = theirs([image])
        instances = result["instances"]
        assert_close(found.boxes, instances.pred_boxes.tensor, atol=1e-5, rtol=0)
        assert_close(found.scores, instances.scores, atol=1e-5, rtol=0)
        assert_close(found.labels, instances.pred_classes)


def test_same_losses(hosts):
    cfg, ours, theirs = hosts
    ours.train(), theirs.train()
    mean, std = pixel_statistics(cfg)
    (dataset,) = load_datasets(cfg, cfg.DATASETS.TRAIN)
    records = dataset.records[:4]
    samples = [DetrMapper.from_config(cfg, is_train=True)(record) for record in records]
    images, sizes = pad_images([sample.image for sample in samples], mean=mean, std=std)
    targets = Targets.from_images(
        [sample.labels for sample in samples],
        [sample.boxes for sample in samples],
        sizes,
        torch.device("cpu"),
    )
    inputs = [DetrDatasetMapper(cfg, is_train=True)(record) for record in records]
    torch.manual_seed(7)  # of denoising
    found = SetCriterion(**SetCriterion.from_config(cfg))(ours(images, sizes, targets), targets)
    torch.manual_seed(7)
    expected = theirs(inputs)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name], atol=1e-5, rtol=0)
