"""Compare SMCA's attention on a device with float64 on the CPU.

Shapes: B images, N queries, L keys, H heads, d channels per head, G Gaussians per query.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from operations import Operations
from references import attention_replaced
from roofline import precision
from torch import Tensor

from smca.modeling import attention
from smca.modeling.gaussians import Gaussians, Grid
from smca.structures import Size

HEADS, CHANNELS = 8, 32
# The largest scale of a Gaussian, and beta.
_MAX_SCALE, _BETA = 2.0, 8.0
# No precision rounds weights above this to zero.
_SURELY_SEEN = 1e-4


@dataclass(frozen=True)
class Case:
    """The sizes of an attention, and the kind of its Gaussians.

    Attributes:
        kind: a value of MODEL.SMCA.MODULATION.SCALE, or "shared" for independent scales with one
            Gaussian for all heads.
        padded: whether the last image has padding at its right side.
        shape: (h, w) of the map in cells.
        images: number of images.
        queries: number of queries for each image.
    """

    kind: str
    padded: bool
    shape: Size
    images: int
    queries: int


class Numbers:
    """The random inputs of a case in float64.

    Queries, keys and values are exactly representable in every half precision, so that all
    precisions work on the same numbers.

    Attributes:
        leaves: the tensors for which to compute gradients, by name.
        gradient: the output's gradient.
        padding: (B, L) bool, True where a key is padding; None without padding.
    """

    def __init__(self, case: Case):
        generator = torch.Generator().manual_seed(0)
        self.case = case
        images, queries = case.images, case.queries
        keys = math.prod(case.shape)
        gaussians = 1 if case.kind == "shared" else HEADS
        sizes = {"query": queries, "key": keys, "value": keys, "gradient": queries}
        self.leaves = {
            name: torch.randn(images, HEADS, size, CHANNELS, generator=generator)
            .to(torch.bfloat16)
            .to(torch.float16)
            .double()
            for name, size in sizes.items()
        }
        place = images, queries, 1, gaussians
        # The prior computes in float32, so these are numbers of float32.
        size = torch.tensor(case.shape[::-1])
        self.leaves["center"] = (torch.rand(*place, 2, generator=generator) * size).double()
        channels = {"fixed": 0, "single": 1, "oriented": 3}.get(case.kind, 2)
        scales = torch.rand(*place, channels, generator=generator) * _MAX_SCALE
        self.leaves["scales"] = scales.double()
        self.gradient = self.leaves.pop("gradient")
        self.padding = None
        if case.padded:
            padding = torch.zeros(images, *case.shape, dtype=torch.bool)
            padding[-1, :, -max(1, case.shape[1] // 4) :] = True
            self.padding = padding.flatten(1)

    def on(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the leaves on a device; centres and scales have at least float32."""
        wide = torch.promote_types(dtype, torch.float32)
        return {
            name: leaf.to(device, wide if name in ("center", "scales") else dtype).requires_grad_()
            for name, leaf in self.leaves.items()
        }

    def attend(self, leaves: dict[str, Tensor], *, dropout: float = 0.0) -> Tensor:
        """Return the attention's output, (B, H, N, d)."""
        center = leaves["center"]
        gaussians = Gaussians(
            center=center,
            precision=_precision(self.case.kind, leaves["scales"], center),
            rate=center.new_tensor([25 / self.case.shape[0] / _BETA]),
        )
        grid = Grid.of(
            [self.case.shape],
            oriented=self.case.kind == "oriented",
            dtype=leaves["query"].dtype,
            like=center,
            padding=None if self.padding is None else [self.padding.to(center.device)],
        )
        tokens = leaves["query"], leaves["key"], leaves["value"]
        return attention.attend(*tokens, biases=gaussians.biases(grid), dropout=dropout)

    def exact(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return output and gradients in float64, from dense matrices by Eqs. 1 to 6."""
        leaves = self.on(torch.device("cpu"), torch.float64)
        with attention_replaced("unfused"):
            out = self.attend(leaves)
        return out.detach(), _gradients(out, leaves, self.gradient)


def _precision(kind: str, scales: Tensor, like: Tensor) -> Tensor:
    """Return the entries xx, yy and xy of the Gaussians' precision matrices P, (..., 3)."""
    if kind == "fixed":
        return F.pad(torch.ones_like(like), (0, 1))
    if kind == "oriented":
        x, y, slant = scales.unbind(-1)
        return torch.stack((x * x, y * y + slant * slant, x * slant), dim=-1)
    return F.pad(scales.square().expand(*scales.shape[:-1], 2), (0, 1))


def _gradients(out: Tensor, leaves: dict[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.numel()}
    found = torch.autograd.grad(out, list(wanted.values()), gradient.to(out))
    return dict(zip(wanted, found, strict=True))


def error(found: Iterable[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest relative error in norm; it is infinite if any number is not finite."""
    largest = 0.0
    for each, reference in zip(found, wanted, strict=True):
        each = each.detach().double().cpu()
        relative = float((each - reference).norm() / reference.norm())
        largest = max(largest, relative if math.isfinite(relative) else math.inf)
    return largest


def _gradient_errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Return one column for queries, keys and values, and one for the Gaussians.

    The gradients of the Gaussians are less exact, because large terms cancel in their sums.
    """
    columns = {"gradient error": ("query", "key", "value"), "of Gaussians": ("center", "scales")}
    return {
        column: error(
            [found[name] for name in names if name in found],
            [wanted[name] for name in names if name in wanted],
        )
        for column, names in columns.items()
    }


def errors(numbers: Numbers, exact: tuple, name: str, device: torch.device) -> dict:
    """Return the errors of output and gradients in a precision, and the kernels that ran."""
    with precision(name) as dtype, Operations() as operations:
        leaves = numbers.on(device, dtype)
        out = numbers.attend(leaves)
        gradients = _gradients(out, leaves, numbers.gradient)
    wanted_out, wanted = exact
    return {
        "output error": error([out], [wanted_out]),
        **_gradient_errors(gradients, wanted),
        "dropped": 0.0,
        "kernels": " ".join(operations.attention) or "math",
    }


def errors_with_dropout(numbers: Numbers, name: str, device: torch.device, dropout: float) -> dict:
    """Return the columns of :func:`errors` for an attention with dropout.

    Unit vectors as values reveal the mask of dropped weights. Each forward pass draws this mask
    again from the same seed, as does the backward pass, so the gradients are right only if all
    masks agree.
    """
    with precision(name) as dtype:
        leaves = numbers.on(device, dtype)
        with Operations() as operations:
            torch.manual_seed(1)
            out = numbers.attend(leaves, dropout=dropout)
            gradients = _gradients(out, leaves, numbers.gradient)
        kept = []
        with torch.no_grad():
            for columns in torch.eye(leaves["value"].shape[2], dtype=dtype).split(CHANNELS, 1):
                units = F.pad(columns, (0, CHANNELS - columns.shape[1])).expand_as(leaves["value"])
                torch.manual_seed(1)
                weights = numbers.attend({**leaves, "value": units.to(device)}, dropout=dropout)
                kept.append(weights[..., : columns.shape[1]].double().cpu())
    # Weights that round to zero look dropped, but do not affect the result.
    mask = (torch.cat(kept, dim=-1) != 0).double() / (1 - dropout)
    dropped = 0.0

    def drop(weights: Tensor, _: float) -> Tensor:
        nonlocal dropped
        dropped = float((mask[weights > _SURELY_SEEN] == 0).double().mean())
        return weights * mask

    exact = numbers.on(torch.device("cpu"), torch.float64)
    with attention_replaced("unfused"), mock.patch.object(F, "dropout", drop):
        wanted_out = numbers.attend(exact)
    wanted = _gradients(wanted_out, exact, numbers.gradient)
    return {
        "output error": error([out], [wanted_out.detach()]),
        **_gradient_errors(gradients, wanted),
        "dropped": dropped,
        "kernels": " ".join(operations.attention) or "math",
    }
