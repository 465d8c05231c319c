"""Fixtures for tests of released files: references, their numbers, and the program."""

import argparse
import functools

import pytest
import released_reference
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from released_files import Released


@pytest.fixture
def original():
    """`original("detr", columns=92, ...)`: a reference detector with random numbers."""
    return lambda *args, **options: _randomised(released_reference.Detector(*args, **options))


def _randomised(model, seed=0):
    """The model with no number at the value it starts at, and with queries and cells that differ.

    Random networks tend to give all of them the same: then errors would not be seen.
    """
    torch.manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn(parameter.shape)
            elif isinstance(module, (nn.Linear, nn.MultiheadAttention)):
                parameter.data *= 1.5
            elif isinstance(module, nn.Conv2d) and module.in_channels > module.out_channels:
                # Maps after a ReLU all have a mean, which would be most of each token.
                parameter.data -= parameter.data.mean(1, keepdim=True)
    hooks = [
        module.register_forward_pre_hook(_normalise)
        for module in model.modules()
        if isinstance(module, FrozenBatchNorm2d)
    ]
    with torch.no_grad():
        model.backbone(torch.randn(1, 3, 160, 192))
    for hook in hooks:
        hook.remove()
    return model.eval()


def _normalise(norm, inputs):
    """Statistics as training leaves them, and other numbers that vary."""
    (x,) = inputs
    norm.running_mean, norm.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    norm.weight, norm.bias = 0.5 + torch.rand(x.shape[1]), 0.2 * torch.randn(x.shape[1])


@pytest.fixture
def published(monkeypatch):
    """`published("detr", 92, ...)`: a file of the published sizes, without numbers."""

    def file(kind, columns, *, depth=50, kernels=(5,), **settings):
        sizes = {"encoder_layers": 6, "decoder_layers": 6}
        softmax = (kind, columns) == ("detr", 92) or kind.startswith("up_detr")
        sizes["queries"] = 100 if softmax else 300
        sizes["ffn"] = 1024 if kind == "smca_depthwise" else 2048
        for name, value in sizes.items():
            monkeypatch.setattr(released_reference.Settings, name, value)
        with torch.device("meta"):
            model = released_reference.Detector(kind, columns=columns, depth=depth, kernels=kernels)
        return Released("released.pth", model.state_dict(), argparse.Namespace(**settings))

    return file


@pytest.fixture
def convert_checkpoint(program):
    """``convert_checkpoint("IN", "OUT", ...)``: exit code and output of the program."""
    return functools.partial(program, "tools/convert_checkpoint.py")
