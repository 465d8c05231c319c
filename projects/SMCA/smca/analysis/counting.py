"""Counting the parameters, multiply-adds and activations of a model's parts.

fvcore counts multiply-adds and activations (the outputs of convolutions and matrix products) on a
trace of one evaluation. It does not know fused attention. Here both products of the attention
count, queries times keys and weights times values, over the channels that define the attention.
The fused kernel has further channels, for Gaussians and to fill up the heads; they are counted by
themselves. fvcore does not count elementwise sums, products and softmaxes. It counts
normalisations with statistics as five times their size, and bilinear interpolation as four times.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import generic_activation_jit, get_shape
from torch import nn

from .host import Subject

ATTENTION = "aten::scaled_dot_product_attention"


@dataclass(frozen=True)
class Count:
    """The counts of one part of a model, as the module's docstring defines them."""

    trainable: int
    parameters: int
    multiply_adds: int = 0
    activations: int = 0


@dataclass(frozen=True)
class ModelCounts:
    """The counts of a model.

    Attributes:
        parts: counts by the name of the part, each before its own parts; "" is the whole model.
        operators: multiply-adds of the whole model by kind of operation, the largest first.
        carried: multiply-adds of the fused attention's further channels, which ``parts`` does not
            include.
    """

    parts: dict[str, Count]
    operators: dict[str, int]
    carried: int


class _AttentionProducts:
    """Counts the multiply-adds of a fused attention in a trace."""

    def __init__(self):
        self.carried = 0

    def __call__(self, inputs: list, outputs: list) -> Counter[str]:
        (*_, keys, computed) = get_shape(inputs[1])
        pairs = math.prod(get_shape(inputs[0])[:-1]) * keys
        computed += get_shape(inputs[2])[-1]
        defined = sum(get_shape(_unextended(inputs[i]))[-1] for i in (0, 2))
        self.carried += pairs * (computed - defined)
        return Counter(attention=pairs * defined)


def _unextended(value: torch._C.Value) -> torch._C.Value:
    """A query or value of the fused kernel before channels were appended to it."""
    node = value.node()
    if node.kind() == "aten::cat":
        return next(node.inputsAt(0).node().inputs())
    return node.inputsAt(0) if node.kind() == "aten::pad" else value


def count_parameters(model: nn.Module) -> Count:
    """Count the parameters of a model, and those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Count(
        trainable=sum(size for size, trained in sizes if trained),
        parameters=sum(size for size, _ in sizes),
    )


@torch.no_grad()
def count_model(
    subject: Subject, *, size: tuple[int, int], batch: int = 1, activations: bool = True
) -> ModelCounts:
    """Count one evaluation of a model, part by part.

    Args:
        subject: the model, on any device but "meta", because a trace runs the model.
        size: (h, w) of the images in pixels.
        batch: number of images.
        activations: whether to count activations too, in a second trace.
    """
    subject.model.eval()
    device = next(subject.model.parameters()).device
    images = torch.rand(batch, 3, *size, device=device)
    products = _AttentionProducts()
    analysis = FlopCountAnalysis(subject, images).set_op_handle(ATTENTION, products)
    multiply_adds = _by_module(analysis)
    operators = {name: int(count) for name, count in analysis.by_operator().most_common()}
    outputs: dict[str, int] = {}
    if activations:
        analysis = ActivationCountAnalysis(subject, images)
        handle = generic_activation_jit("attention")
        outputs = _by_module(analysis.set_op_handle(ATTENTION, handle))
    parts = {}
    for name, module in subject.model.named_modules():
        traced_name = f"model.{name}" if name else ""
        parts[name] = replace(
            count_parameters(module),
            multiply_adds=int(multiply_adds[traced_name]),
            activations=int(outputs.get(traced_name, 0)),
        )
    return ModelCounts(parts=parts, operators=operators, carried=products.carried)


def _by_module(analysis: FlopCountAnalysis | ActivationCountAnalysis) -> dict[str, int]:
    # This module's docstring names the operations that do not count, and parts may be idle.
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none").by_module()
