"""Small layers that encoder, decoder and heads share."""

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(device: torch.device) -> AbstractContextManager:
    """Turn autocast off. Where it is off already, an exported graph shows no trace of this."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type that products with ``x`` are computed in: autocast's where it is on."""
    if not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def linear(in_features: int, out_features: int, *, gain: float = 1.0) -> nn.Linear:
    """Make a linear layer as the transformer starts: Xavier-uniform weight, zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)
    return layer


def logit(probability: float) -> float:
    """Return the bias at which scores start at a probability."""
    return math.log(probability / (1 - probability))


class ReLU(nn.Module):
    """ReLU in place, but for traces: later calls of a traced file may record gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=not torch.jit.is_tracing())


class MLP(nn.Sequential):
    """``num_layers`` linear layers, made by ``make(in, out)``, with ReLU between them."""

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        num_layers: int,
        *,
        make: Callable[[int, int], nn.Module] = nn.Linear,
    ):
        widths = [in_features, *[hidden] * (num_layers - 1), out_features]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [make(before, after), ReLU()]
        super().__init__(*layers[:-1])


class FFN(nn.Sequential):
    """The feed-forward network of a transformer block."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__(
            # Before the ReLU dropout does the same in place, without a tensor of its own.
            *(linear(dim, hidden), nn.Dropout(dropout, inplace=True), ReLU()),
            linear(hidden, dim),
        )


class ResidualBlock(nn.Module):
    """The base of encoder blocks and decoder layers: parts with dropout, residual and norm."""

    def __init__(self, *, dropout: float, pre_norm: bool):
        """
        Args:
            dropout: after each part.
            pre_norm: norm the input of each part, instead of its sum with the residual
                (post-norm, as in DETR).
        """
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def residual(
        self, x: Tensor, part: Callable[[Tensor], Tensor], norm: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Run ``part`` on ``x`` and add the result to ``x``."""
        if self.pre_norm:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))


def per_scale(make: Callable[[], nn.Module], count: int) -> nn.Module:
    """``make()`` once for all scales (``count`` 1), or once a scale in a ``ModuleList``."""
    return make() if count == 1 else nn.ModuleList(make() for _ in range(count))


def apply_per_scale(module: nn.Module, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """Apply the result of :func:`per_scale` to tokens (B, L, C), ``lengths`` tokens a scale."""
    if not isinstance(module, nn.ModuleList):
        return module(tokens)
    scales = tokens.split(lengths, dim=1)
    return torch.cat([layer(scale) for layer, scale in zip(module, scales, strict=True)], dim=1)


def compile_layers(*parts: nn.Module) -> None:
    """Have torch compile the blocks and layers of ``parts`` when they first run.

    They are compiled one by one, because layers that are alike share the result, and for sizes
    that vary, because images do.
    """
    for part in parts:
        for layers in part.children():
            if isinstance(layers, nn.ModuleList):
                for layer in layers:
                    layer.compile(dynamic=True)
