"""The fused attention against a plain one that writes out every N x L matrix."""

import math

import pytest
import torch
from torch.testing import assert_close

from smca.modeling.attention import attend, attention_weights
from smca.modeling.gaussians import PARTS, Gaussians, Grid

B, N, H, D = 2, 300, 8, 32
SHAPE = (50, 84)


def grid(shape):
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1).double()


def unfused(query, key, value, log_g, padding=None):
    """softmax(q k^T / sqrt(d) + log G) v, written out."""
    logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + log_g
    if padding is not None:
        logits = logits.masked_fill(padding[:, None, None], -torch.inf)
    return logits.softmax(-1) @ value


def log_gaussian(center, matrix, rate, shape):
    """(B, H, N, L) from centres (B, N, H, 2) and precision matrices (B, N, H, 2, 2)."""
    difference = grid(shape).to(center) - center[..., None, :]  # (B, N, H, L, 2)
    quadratic = torch.einsum("bnhli,bnhij,bnhlj->bnhl", difference, matrix, difference)
    return -rate * quadratic.transpose(1, 2)


def random_gaussians(shape, *, oriented=False, largest=2.0, heads=H, queries=N):
    """Gaussians of one map, and their precision matrices of at most ``largest ** 2``."""
    size = torch.tensor([shape[1], shape[0]])
    center = torch.rand(B, queries, heads, 2) * size
    lower = torch.rand(B, queries, heads, 2, 2).tril() * largest
    lower = lower * 0.5**0.5 if oriented else lower * torch.eye(2)
    matrix = lower @ lower.mT
    numbers = torch.stack((matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 0, 1]), dim=-1)
    rate = torch.tensor([1 / 16])
    gaussians = Gaussians(center=center[:, :, None], precision=numbers[:, :, None], rate=rate)
    return gaussians, center, matrix


def bias_of(gaussians, shape, *, oriented=False, dtype=torch.float32, padding=None):
    """What one map has added to its logits: log G, and what leaves padding out."""
    padding = None if padding is None else [padding]
    like = gaussians.center
    grid = Grid.of([shape], oriented=oriented, dtype=dtype, like=like, padding=padding)
    (bias,) = gaussians.biases(grid)
    return bias


@pytest.mark.parametrize("oriented", [False, True])
@pytest.mark.parametrize("heads", [H, 1])
def test_modulated_attention_and_gradients(oriented, heads):
    torch.manual_seed(0)
    gaussians, center, matrix = random_gaussians(SHAPE, oriented=oriented, heads=heads)
    length = math.prod(SHAPE)
    query, key, value = torch.randn(B, H, N, D), *torch.randn(2, B, H, length, D)
    leaves = [query, key, value, gaussians.center, gaussians.precision]
    for leaf in leaves:
        leaf.requires_grad_()
    bias = bias_of(gaussians, SHAPE, oriented=oriented)
    out = attend(query, key, value, biases=[bias])
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), leaves)

    # The reference in float64, from the same numbers.
    numbers = gaussians.precision[:, :, 0].double()
    rows = [torch.stack((numbers[..., i], numbers[..., j]), -1) for i, j in ((0, 2), (2, 1))]
    log_g = log_gaussian(gaussians.center[:, :, 0].double(), torch.stack(rows, -2), 1 / 16, SHAPE)
    expected = unfused(query.double(), key.double(), value.double(), log_g)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), leaves)
    assert_close(out.double(), expected, atol=1e-4, rtol=0)
    if not oriented:  # xy is zero and not part of the model
        gradients, wanted = ((*some[:-1], some[-1][..., :2]) for some in (gradients, wanted))
    for gradient, reference in zip(gradients, wanted, strict=True):
        assert_close(gradient, reference, atol=1e-4, rtol=1e-3)
        assert (gradient - reference).norm() < 2e-5 * reference.norm()


def test_padded_keys_get_nothing_and_rows_sum_to_one():
    torch.manual_seed(0)
    shape = (13, 17)
    gaussians, center, matrix = random_gaussians(shape, largest=30.0)
    # Centres far outside of the valid part: the nearest keys are padding.
    padding = torch.zeros(B, *shape, dtype=torch.bool)
    padding[0, 6:] = True
    padding[1, :, 9:] = True
    padding = padding.flatten(1)
    query, key, value = torch.randn(B, H, N, D), *torch.randn(2, B, H, padding.shape[1], D)
    biases = [bias_of(gaussians, shape, padding=padding)]
    weights = attention_weights(query, key, biases=biases)
    assert weights.masked_select(padding[:, None, None].expand_as(weights)).eq(0).all()
    assert_close(weights.sum(-1), torch.ones(B, H, N))
    out = attend(query, key, value, biases=biases)
    log_g = log_gaussian(center.double(), matrix.double(), 1 / 16, shape)
    expected = unfused(query.double(), key.double(), value.double(), log_g, padding)
    assert_close(out.double(), expected, atol=1e-3, rtol=0)
    # What is in the padding does not matter.
    key[padding[:, None].expand(B, H, -1)] = 1e3
    assert_close(attend(query, key, value, biases=biases), out, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_gaussian_is_accurate_in_every_precision(dtype):
    """On a 100 x 168 map, to 1e-3; near the centre, where attention is not zero."""
    torch.manual_seed(0)
    shape = (100, 168)
    gaussians, center, matrix = random_gaussians(shape, oriented=True, queries=40)
    bias = bias_of(gaussians, shape, oriented=True, dtype=dtype)
    log_g = bias.query.float() @ bias.key.float().mT  # as kernels sum, in float32
    expected = log_gaussian(center.double(), matrix.double(), 1 / 16, shape)
    near = expected > -20
    # Softmax does not see a constant of the row.
    best = expected.max(-1, keepdim=True)
    error = log_g - log_g.gather(-1, best.indices) - (expected - best.values)
    assert error[near].abs().max() < 1e-3


@pytest.mark.parametrize("dtype", PARTS)
def test_half_precision_parts_pass_on_one_gradient(dtype):
    torch.manual_seed(0)
    gaussians, *_ = random_gaussians((9, 7), oriented=True, queries=6)
    leaves = gaussians.center.requires_grad_(), gaussians.precision.requires_grad_()
    weights, found = torch.randn(B, H, 6, 63), []
    for each in (torch.float32, dtype):
        bias = bias_of(gaussians, (9, 7), oriented=True, dtype=each)
        log_g = bias.query.float() @ bias.key.float().mT
        found.append(torch.autograd.grad((log_g * weights).sum(), leaves))
    tolerance = 2 * torch.finfo(dtype).eps
    for exact, half in zip(*found, strict=True):
        assert (half - exact).norm() < tolerance * exact.norm()


def test_a_fused_kernel_runs_with_a_prior_and_with_padding():
    """On a CPU without dropout: no (N, L) matrix, neither forward nor backward."""
    shape = (25, 34)
    gaussians, *_ = random_gaussians(shape, queries=50)
    padding = torch.zeros(B, shape[0] * shape[1], dtype=torch.bool)
    padding[1, 600:] = True
    query = torch.randn(B, H, 50, D, requires_grad=True)
    key, value = torch.randn(2, B, H, padding.shape[1], D)
    biases = [bias_of(gaussians, shape, padding=padding)]
    with torch.profiler.profile() as profile:
        attend(query, key, value, biases=biases).sum().backward()
    kernels = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in kernels
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in kernels
    assert not any("softmax" in name for name in kernels)
