"""TSP-FCOS beside Detectron2's own parts, and MSRA's weights in both hosts."""

import pickle

import pytest
import torch
from torch.testing import assert_close

from smca.checkpoints import load
from smca.errors import CheckpointError
from smca.modeling import build_detector, detect

pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_backbone, build_model  # noqa: E402
from detectron2.modeling.backbone import FPN as TheirFPN  # noqa: E402

from smca.d2 import add_smca_config  # noqa: E402


def caffe2_names(state):
    """A ResNet's tensors as Caffe2 names them, with norms that are a scale and a shift alone."""
    blobs = {"fc1000_w": torch.zeros(3, 4).numpy(), "fc1000_b": torch.zeros(3).numpy()}
    blobs["conv1_b"] = torch.ones(64).numpy()  # which MSRA's has, and Detectron2 leaves out
    for name, tensor in state.items():
        if "running" in name:
            continue
        for number, letter in enumerate("abc", start=1):
            name = name.replace(f".conv{number}.", f"_branch2{letter}.")
        name = name.replace("stem_branch2a.norm", "res_conv1.norm")
        name = name.replace("stem_branch2a", "conv1")
        name = name.replace(".shortcut.", "_branch1.")
        name = name.replace("norm.weight", "bn_s").replace("norm.bias", "bn_b")
        name = name.replace(".weight", "_w").replace(".", "_")
        blobs[name] = tensor.numpy()
    return blobs


@pytest.fixture(scope="module")
def msra(tmp_path_factory):
    """A file like MSRA's R-50.pkl, of random numbers, and Detectron2's ResNet that has read it."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    resnet = build_backbone(cfg)
    generator = torch.Generator().manual_seed(0)
    state = resnet.state_dict()
    for name, tensor in state.items():
        if "running" not in name and "norm" in name:
            tensor.uniform_(0.3, 0.7, generator=generator)
    path = tmp_path_factory.mktemp("msra") / "R-50.pkl"
    path.write_bytes(pickle.dumps(caffe2_names(state), protocol=2))
    theirs = build_backbone(cfg)
    DetectionCheckpointer(theirs).load(str(path))
    assert torch.equal(theirs.res5[2].conv3.weight, resnet.res5[2].conv3.weight)
    assert torch.equal(theirs.stem.conv1.norm.bias, resnet.stem.conv1.norm.bias)
    return path, theirs.eval()


def test_msras_weights_give_detectron2s_maps(msra, config):
    path, theirs = msra
    detector = build_detector(config("baselines/tsp_fcos_R50_36ep")).eval()
    load(detector, path)
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        found, expected = detector.double().backbone(images), theirs.double()(images)
    for name, maps in expected.items():
        assert_close(found[name], maps, rtol=0, atol=1e-10 * maps.abs().max().item())


def test_weights_are_for_one_place_of_the_stride(msra, config):
    detector = build_detector(config("smca_R50_50ep"))
    with pytest.raises(CheckpointError, match=r"R-50.pkl.*MODEL.RESNETS.STRIDE_IN_1X1 True"):
        load(detector, msra[0])


def test_caffe2s_resnexts_stride_in_the_3x3(tmp_path, config):
    """Detectron2's X-101-32x8d.pkl has Caffe2's names, too."""
    groups = ["MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 8]
    detector = build_detector(config("smca_R50_50ep", *groups))
    state = {n: tensor.clone() for n, tensor in detector.backbone.state_dict().items()}
    path = tmp_path / "X-50-32x8d.pkl"
    path.write_bytes(pickle.dumps(caffe2_names(state), protocol=2))
    weight = detector.backbone.res5[0].conv2.weight
    torch.nn.init.zeros_(weight)
    load(detector, path)
    assert torch.equal(weight, state["res5.0.conv2.weight"]) and weight.any()
    other = build_detector(config("smca_R50_50ep", *groups, "MODEL.RESNETS.STRIDE_IN_1X1", True))
    with pytest.raises(CheckpointError, match="STRIDE_IN_1X1 False"):
        load(other, path)


@torch.no_grad()
def test_the_pyramid_is_detectron2s(config):
    detector = build_detector(config("baselines/tsp_fcos_R50_36ep")).eval()
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    theirs = TheirFPN(build_backbone(cfg), ["res3", "res4", "res5"], 256).eval()
    theirs.bottom_up.load_state_dict(detector.backbone.state_dict())
    for level in range(3):
        levels = detector.pyramid.levels
        for name, own in (("lateral", levels.inner_blocks), ("output", levels.layer_blocks)):
            conv = getattr(theirs, f"fpn_{name}{level + 3}")
            conv.load_state_dict(own[level][0].state_dict())
    images = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    found = detector.pyramid(detector.backbone(images))
    for maps, expected in zip(found[:3], list(theirs(images).values())[:3], strict=True):
        assert_close(
            maps / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-5
        )


@torch.no_grad()
def test_both_hosts_have_one_model(config):
    opts = ("MODEL.DEVICE", "cpu", "MODEL.SMCA.NUM_CLASSES", 3, "MODEL.WEIGHTS", "")
    native = build_detector(config("baselines/tsp_fcos_R50_36ep", *opts)).eval()
    cfg = get_cfg()
    add_smca_config(cfg)
    cfg.merge_from_file("configs/baselines/tsp_fcos_R50_36ep.yaml")
    cfg.merge_from_list(list(opts))
    theirs = build_model(cfg).eval()
    theirs.load_state_dict(native.state_dict(), strict=False)
    assert native.state_dict().keys() == theirs.state_dict().keys()
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1)) * 255
    [found] = theirs([{"image": image, "height": 192, "width": 256}])
    images, sizes = theirs.preprocess([{"image": image}])
    [expected] = detect(native(images, sizes), [(192, 256)], max_detections=100)
    assert_close(found["instances"].pred_boxes.tensor, expected.boxes)
    assert_close(found["instances"].scores, expected.scores)
    assert len(expected.boxes) == 100
