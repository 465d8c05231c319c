"""The project's ResNet and Detectron2's own are one network."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import (  # noqa: E402
    BACKBONE_REGISTRY,
    SwinTransformer,
    build_backbone,
    build_model,
)

from smca.d2 import add_smca_config  # noqa: E402


@pytest.mark.parametrize(
    ("depth", "norm", "features", "stride_in_1x1"),
    [
        (50, "FrozenBN", ["res4", "res5"], False),
        (50, "FrozenBN", ["res3", "res5"], True),
        (18, "BN", ["res2", "res4"], True),
        (50, "GN", ["res3"], False),
    ],
)
def test_same_names_and_maps_as_detectron2s(depth, norm, features, stride_in_1x1):
    cfg = get_cfg()
    add_smca_config(cfg)
    resnets = cfg.MODEL.RESNETS
    resnets.STRIDE_IN_1X1 = stride_in_1x1
    resnets.DEPTH, resnets.NORM, resnets.OUT_FEATURES = depth, norm, features
    if depth == 18:
        resnets.RES2_OUT_CHANNELS = 64
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
    theirs = build_backbone(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_smca_resnet_backbone"
    ours = build_backbone(cfg)

    generator = torch.Generator().manual_seed(0)
    state = theirs.state_dict()
    for name, tensor in state.items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    assert ours.output_shape() == theirs.output_shape()
    trained = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, p in theirs.named_parameters() if p.requires_grad]

    images = torch.randn(2, 3, 75, 98, generator=generator)
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    assert list(found) == features
    for name in features:
        scale = expected[name].abs().max()
        torch.testing.assert_close(found[name] / scale, expected[name] / scale, rtol=0, atol=1e-5)


def test_detectron2s_bare_swin(d2_config, monkeypatch):
    """It has no working ``size_divisibility``, as it was made for a feature pyramid around it."""

    def build_bare_swin(cfg, input_shape):
        return SwinTransformer(embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "build_bare_swin", build_bare_swin)
    cfg = d2_config()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SMCA.IN_FEATURES = "build_bare_swin", ["p2", "p3"]
    model = build_model(cfg).eval()
    images = [{"image": torch.rand(3, 50, 70) * 255}, {"image": torch.rand(3, 64, 33) * 255}]
    assert model.preprocess(images)[0].shape == (2, 3, 64, 96)
    with torch.no_grad():
        found = model(images)
    assert all(image["instances"].pred_boxes.tensor.isfinite().all() for image in found)
