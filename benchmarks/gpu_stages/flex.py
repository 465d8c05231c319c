"""SMCA's co-attention by FlexAttention, which adds the Gaussian to each logit."""

from collections.abc import Callable

import torch
from co_attention import CoAttention
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention


def flex_attend(numbers: CoAttention) -> Callable[[], object]:
    """Return a function that runs forward and backward pass; its first call compiles."""
    columns = numbers.shape[1]
    compiled = torch.compile(flex_attention, dynamic=False)

    def work() -> Tensor:
        gaussians = numbers.gaussians()
        cx, cy = gaussians.center[:, :, 0].transpose(1, 2).unbind(-1)  # (B, H, N)
        squares = gaussians.precision[:, :, 0].transpose(1, 2) * numbers.rate
        xx, yy, _ = squares.unbind(-1)

        def modulated(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            dx, dy = k % columns - cx[b, h, q], k // columns - cy[b, h, q]
            return score - xx[b, h, q] * dx * dx - yy[b, h, q] * dy * dy

        query, key, value = (tokens.transpose(1, 2) for tokens in numbers.tokens)
        out = compiled(query, key, value, score_mod=modulated)
        leaves = (*numbers.tokens, numbers.center, numbers.scales)
        torch.autograd.grad(out, leaves, numbers.gradient.to(out))
        return out

    return work
