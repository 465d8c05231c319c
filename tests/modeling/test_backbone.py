"""The ResNet against torchvision's, with torchvision's weights read from a file."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close
from torchvision.models._utils import IntermediateLayerGetter

from smca.checkpoints import read_checkpoint
from smca.config import ConfigError
from smca.modeling import Backbone, ResNet
from smca.modeling.detector import check_maps
from smca.modeling.resnet_blocks import ConvNorm


@pytest.mark.parametrize(("depth", "dilated"), [(18, False), (50, False), (50, True)])
def test_maps_are_torchvisions(depth, dilated, tmp_path):
    torch.manual_seed(0)
    options = {"replace_stride_with_dilation": [False, False, dilated]} if depth == 50 else {}
    theirs = getattr(torchvision.models, f"resnet{depth}")(**options).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    stages = {f"layer{i}": f"res{i + 1}" for i in range(1, 5)}
    ours = ResNet(
        depth=depth,
        out_features=list(stages.values()),
        res2_channels=64 if depth == 18 else 256,
        res5_dilation=2 if dilated else 1,
    )
    state = read_checkpoint(tmp_path / "resnet.pth")["model"]
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    ours.load_state_dict(state)
    images = torch.randn(1, 3, 75, 130).double()
    ours, theirs = ours.double(), theirs.double()
    with torch.no_grad():
        expected = IntermediateLayerGetter(theirs, stages)(images)
        maps = ours(images)
    for name, reference in expected.items():
        assert_close(maps[name], reference, rtol=1e-10, atol=1e-10)
        assert maps[name].shape[1] == ours.channels[name]
        assert maps[name].shape[2] == -(-75 // ours.strides[name])


@pytest.mark.parametrize(
    ("depth", "norm", "stem", "stride_in_1x1"),
    [
        (10, "FrozenBN", "basic", False),
        (10, "GN", "basic", False),
        (10, "GN", "conv", False),
        (50, "FrozenBN", "conv", False),
        (50, "FrozenBN", "basic", True),
        (50, "GN", "basic", True),
    ],
)
def test_padding_leaves_no_trace(depth, norm, stem, stride_in_1x1):
    torch.manual_seed(0)
    net = ResNet(
        depth=depth,
        out_features=["res3", "res5"],
        res2_channels=32,
        stem_channels=16,
        norm=norm,
        stem=stem,
        freeze_at=0,
        stride_in_1x1=stride_in_1x1,
    )
    for module in net.modules():
        if isinstance(module, torchvision.ops.FrozenBatchNorm2d | torch.nn.GroupNorm):
            module.bias.data.normal_()  # so that padding does not stay zero by itself
    net = net.double()
    image = torch.randn(1, 3, 45, 71).double()
    batch = torch.zeros(2, 3, 90, 100).double()
    batch[:1, :, :45, :71] = image
    batch[1:] = torch.randn(1, 3, 90, 100)
    alone, padded = net(image), net(batch, [(45, 71), (90, 100)])
    for name in alone:
        rows, columns = alone[name].shape[-2:]
        assert_close(padded[name][:1, :, :rows, :columns], alone[name])


def test_a_frozen_norm_follows_its_numbers():
    """They are kept as scale and shift, and made anew when they change."""
    torch.manual_seed(0)
    conv = ConvNorm(3, 4, 1, norm="FrozenBN")
    x = torch.randn(2, 3, 5, 6)

    def same() -> bool:
        norm, plain = conv.norm, torch.nn.functional.conv2d(x.to(conv.weight), conv.weight)
        numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        expected = torch.nn.functional.batch_norm(plain, *numbers, eps=norm.eps)
        return torch.allclose(conv(x.to(conv.weight), None), expected, atol=1e-5)

    with torch.inference_mode():
        assert same()
    conv(x, None).sum().backward()
    with torch.no_grad():
        conv.norm.running_var.fill_(4.0)
    assert same()
    conv.norm.load_state_dict({k: v + 1 for k, v in conv.norm.state_dict().items()})
    assert same()
    conv.norm.bias.data.add_(1.0)  # which no version counts, unlike the next
    conv.norm.bias.mul_(1.0)
    assert same()
    copied = copy.deepcopy(conv)
    copied.norm.weight.mul_(3.0)
    assert same()
    conv = copied.double()
    assert same()


def test_frozen_stages_do_not_train():
    net = ResNet(depth=18, out_features=["res5"], res2_channels=64, norm="BN", freeze_at=2)
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"res3", "res4", "res5"}
    frozen = [m for m in net.res2.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not frozen


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RESNETS.DEPTH", 51),
        ("MODEL.RESNETS.NORM", "IN"),
        ("MODEL.RESNETS.STEM_TYPE", "deep"),
        ("MODEL.SMCA.IN_FEATURES", ["res9"]),
    ],
)
def test_impossible_values_are_named(config, key, value):
    with pytest.raises(ConfigError, match=key):
        ResNet.from_config(config("smca_R50_50ep", key, value))


@pytest.mark.parametrize(("strides", "found"), [({"res4": 8}, "(1, 7, 4, 6)"), ({"x": 16}, "None")])
def test_maps_that_are_not_what_a_backbone_says_are_refused(strides, found):
    class Odd(Backbone):
        def __init__(self):
            super().__init__()
            self.strides, self.channels = strides, dict.fromkeys(strides, 7)
            self.patches = nn.Conv2d(3, 7, 16, stride=16)

        def forward(self, images, sizes=None):
            return {"res4": self.patches(images)}

    with pytest.raises(ConfigError, match=re.escape(f"of 64x96 pixels is {found}; by its strides")):
        check_maps(Odd())
