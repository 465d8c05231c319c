import pytest
import torch
from torch.testing import assert_close

from smca.engine.step import TrainingStep, amp_dtype, seed_step
from smca.errors import NonFiniteLossError


def make(amp=None):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    return layer, TrainingStep(optimizer, device=torch.device("cpu"), amp=amp)


def test_a_step_is_forward_backward_update():
    layer, step = make()
    x = torch.randn(3, 4)
    before = layer.weight.detach().clone()
    gradient = torch.autograd.grad(layer(x).square().sum() + layer(x).sum(), layer.weight)[0]
    losses = step(lambda: {"a": layer(x).square().sum(), "b": layer(x).sum()}, [1])
    assert list(losses) == ["a", "b"]
    assert_close(layer.weight.detach(), before - 0.1 * gradient)


def test_mixed_precision_on_a_cpu_is_bfloat16():
    layer, step = make(amp=torch.bfloat16)
    seen = []
    step(lambda: {"a": seen.append(layer(torch.randn(3, 4))) or seen[-1].float().sum()}, [1])
    assert seen[0].dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32


def test_a_cpu_that_half_precision_makes_slower_is_told_of(caplog, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    make(amp=torch.bfloat16)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    make(amp=torch.bfloat16)
    assert "SOLVER.AMP.ENABLED False is faster here" in caplog.text


def test_what_mixed_precision_computes_in(config):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    enabled = ("SOLVER.AMP.ENABLED", True)
    assert amp_dtype(config("quickstart"), cuda) is None
    assert amp_dtype(config("quickstart", *enabled), cpu) is torch.bfloat16
    assert amp_dtype(config("quickstart", *enabled), cuda) is torch.float16
    for name in ("bfloat16", "float16"):
        cfg = config("quickstart", *enabled, "SOLVER.AMP.PRECISION", name)
        assert amp_dtype(cfg, cuda) is amp_dtype(cfg, cpu) is getattr(torch, name)


def test_only_float16_scales_its_loss():
    scales = [make(amp)[1].scaler.is_enabled() for amp in (None, torch.bfloat16, torch.float16)]
    assert scales == [False, False, True]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_losses_that_are_not_finite_stop_before_the_update(value):
    layer, step = make()
    before = layer.weight.detach().clone()
    losses = {"fine": lambda: layer.weight.sum(), "broken": lambda: layer.weight.sum() * value}
    with pytest.raises(NonFiniteLossError, match=r"^broken of the images \[7, 9\]$"):
        step(lambda: {name: loss() for name, loss in losses.items()}, [7, 9])
    assert_close(layer.weight.detach(), before, atol=0, rtol=0)


def test_seeds_are_a_function_of_run_iteration_and_worker():
    def draw(*key):
        seed_step(*key)
        return torch.rand(3).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({tuple(draw(*key)) for key in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}) == 4
