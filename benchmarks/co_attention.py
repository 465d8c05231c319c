"""One of SMCA's co-attentions on random numbers: its work, and its errors against float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measuring import Row
from references import Matrix, attention_replaced
from roofline import precision
from torch import Tensor

from smca.modeling import attention
from smca.modeling.gaussians import Gaussians, Grid
from smca.structures import Size

HEADS, CHANNELS = 8, 32
# The largest scale of a Gaussian; its squared width is divided by the square of its scale.
MAX_SCALE = 2.0
# The stride-32 map of an image whose short side is 800 pixels has this many rows.
ROWS = 25


@dataclass(frozen=True)
class Case:
    """The sizes of an attention, its precision and its device.

    Attributes:
        shape: (h, w) of the map in cells.
        batch: number of images.
        queries: number of queries for each image.
        precision: one of :data:`roofline.PRECISIONS`.
        device: torch's name of the device.
    """

    shape: Size
    batch: int
    queries: int
    precision: str
    device: str

    @property
    def weights(self) -> int:
        """Return the number of attention weights in all heads and images."""
        return self.batch * HEADS * self.queries * math.prod(self.shape)


class CoAttention:
    """Random inputs of a case; queries, keys, values, centres and scales require gradients."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        batch, queries = case.batch, case.queries
        self.shape = case.shape
        self.rate = ROWS / case.shape[0] / 8
        with torch.device(case.device), precision(case.precision) as dtype:
            tokens = [(batch, n, HEADS, CHANNELS) for n in (queries, *[math.prod(case.shape)] * 2)]
            self.tokens = [torch.randn(size).to(dtype).requires_grad_() for size in tokens]
            self.gradient = torch.randn(batch, HEADS, queries, CHANNELS).to(dtype)
            gaussians = batch, queries, 1, HEADS, 2
            size = torch.tensor(case.shape[::-1])
            self.center = (torch.rand(gaussians) * size).requires_grad_()
            self.scales = (torch.rand(gaussians) * MAX_SCALE).requires_grad_()

    def gaussians(self) -> Gaussians:
        """Return the Gaussians with the case's centres and scales."""
        squares = F.pad(self.scales.square(), (0, 1))
        return Gaussians(
            center=self.center, precision=squares, rate=self.center.new_tensor([self.rate])
        )

    def biases(self) -> list:
        """Return log G in the form that the current attention takes."""
        dtype = self.tokens[0].dtype
        grid = Grid.of([self.shape], oriented=False, dtype=dtype, like=self.center)
        return self.gaussians().biases(grid)

    def work(self, name: str, *, backward: bool) -> Callable[[], Tensor]:
        """Return the function to time, with attention ``name`` of ``ATTENDS``.

        The function returns the output, (B, H, N, d).
        """

        def forward() -> Tensor:
            with attention_replaced(name):
                tokens = (x.transpose(1, 2) for x in self.tokens)
                return attention.attend(*tokens, biases=self.biases())

        def forward_backward() -> Tensor:
            out = forward()
            torch.autograd.grad(out, (*self.tokens, self.center, self.scales), self.gradient)
            return out

        return forward_backward if backward else torch.no_grad()(forward)

    @torch.no_grad()
    def exact(self) -> tuple[Tensor, Tensor]:
        """Return the first image's output (H, N, d) and log G (H, N, L) in float64."""
        points = torch.cartesian_prod(*(torch.arange(float(n)) for n in self.shape)).flip(-1)
        first = Gaussians(
            center=self.center[:1].double(),
            precision=F.pad(self.scales[:1].double().square(), (0, 1)),
            rate=self.center.new_tensor([self.rate], dtype=torch.float64),
        )
        log_g = first.log_density(0, points.to(first.rate))[0]
        query, key, value = (tokens[0].double().transpose(0, 1) for tokens in self.tokens)
        weights = torch.baddbmm(log_g, query, key.mT, alpha=CHANNELS**-0.5).softmax(-1)
        return weights @ value, log_g

    @torch.no_grad()
    def errors(self, name: str, output: Tensor, log_g: Tensor) -> Row:
        """Return the largest differences of output and log G from those of :meth:`exact`."""
        found = self.work(name, backward=False)()[0]
        with attention_replaced(name):
            (bias,) = self.biases()
        if isinstance(bias, Matrix):
            # torch's attention takes the mask in the precision of queries and keys.
            kind = found.dtype if name == "dense" else torch.float32
            found_log_g = bias.logits[0].to(kind).float()
        else:
            # Kernels multiply half precision exactly and sum in float32.
            found_log_g = bias.query[0].float() @ bias.key[0].float().mT
        return {
            "output_error": float((found - output).abs().max()),
            "log_g_error": float((found_log_g - log_g).abs().max()),
        }
