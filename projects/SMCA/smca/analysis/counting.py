"""Parameters, multiply-adds and activations of a model's parts.

Multiply-adds and activations (the outputs of convolutions and matrix products) are counted by
fvcore, on a trace of one evaluation. fvcore counts no fused attention; that is added here: both of
its products, queries times keys and weights times values, over the channels the attention is
defined with. Left out is what the fused kernel carries along instead of adding a matrix to the
logits, the channels of Gaussians and those that fill a head up; they are counted by themselves.
As fvcore has it, sums, products and softmaxes of single elements count nothing, normalisations
with statistics five times their size, bilinear interpolation four times.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import generic_activation_jit, get_shape
from torch import Tensor, nn

from .host import Subject

ATTENTION = "aten::scaled_dot_product_attention"


@dataclass(frozen=True)
class Count:
    """What one part has; see the module for what is counted."""

    trainable: int
    parameters: int
    multiply_adds: int = 0
    activations: int = 0


@dataclass(frozen=True)
class ModelCounts:
    """What a model has.

    Attributes:
        parts: by name, each before its own parts; "" is the whole model.
        operators: multiply-adds of the whole model by kind of operation, the greatest first.
        carried: multiply-adds of the fused attention's further channels, which are not in
            ``parts``.
    """

    parts: dict[str, Count]
    operators: dict[str, int]
    carried: int


class _Inference(nn.Module):
    """What fvcore traces: a module, of tensors."""

    def __init__(self, subject: Subject):
        super().__init__()
        self.model = subject.model
        self._infer = subject.infer

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self._infer(images)


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
    """A query or value of the fused kernel, without the channels that were appended to it."""
    node = value.node()
    if node.kind() == "aten::cat":
        return next(node.inputsAt(0).node().inputs())
    return node.inputsAt(0) if node.kind() == "aten::pad" else value


def count_parameters(model: nn.Module) -> Count:
    """The parameters of ``model``, and how many of them are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Count(
        trainable=sum(size for size, trained in sizes if trained),
        parameters=sum(size for size, _ in sizes),
    )


@torch.no_grad()
def count_model(
    subject: Subject, *, size: tuple[int, int], batch: int = 1, activations: bool = True
) -> ModelCounts:
    """Count one evaluation of ``batch`` images of ``size`` (h, w), part by part.

    Args:
        subject: on any device but "meta": a trace runs the model.
        size: rows and columns of pixels.
        batch: images.
        activations: count them too, in a second trace.
    """
    subject.model.eval()
    traced = _Inference(subject)
    device = next(subject.model.parameters()).device
    images = torch.rand(batch, 3, *size, device=device)
    products = _AttentionProducts()
    analysis = FlopCountAnalysis(traced, images).set_op_handle(ATTENTION, products)
    multiply_adds = _by_module(analysis)
    operators = {name: int(count) for name, count in analysis.by_operator().most_common()}
    outputs: dict[str, int] = {}
    if activations:
        analysis = ActivationCountAnalysis(traced, images)
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
    # What it does not count is said in this module; a part may well be idle.
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none").by_module()
