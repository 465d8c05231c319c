"""A training step has the host wait for a GPU once, for the matcher's costs.

The losses, which are checked and logged, are copied while the backward pass is queued; reading them
is what the step does besides. The moving average of the weights is part of it.
"""

import contextlib

import pytest
import torch
from cuda_copies import INDEXING, copies_that_wait, place
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from smca.engine.ema import MovingAverage
from smca.engine.step import TrainingStep
from smca.modeling.detector import build_detector, pad_images, pixel_statistics
from smca.structures import Predictions
from smca.training import SetCriterion, Targets
from smca.training.matcher import Matches
from smca.training.solver import build_optimizer

# Operations whose result's shape, or the number that Python gets, is known to the device only.
WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}


class Operations(TorchDispatchMode):
    """Notes in ``found`` where operations wait, but for those on the tensors at ``on_host``."""

    def __init__(self, found: list[str], on_host: set[int]):
        super().__init__()
        self.found, self.on_host = found, on_host

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = name in WAITING and args[0].data_ptr() not in self.on_host
        if name in INDEXING:
            waits = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if waits:
            self.found.append(place())
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Notes in ``found`` where tensors are brought to the host, which on a CPU is no operation."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        moved = func is Tensor.to and "cpu" in (*args[1:], kwargs.get("device"))
        if func in (Tensor.cpu, Tensor.tolist) or moved and not kwargs.get("non_blocking"):
            self.found.append(place())
        return func(*args, **kwargs)


@contextlib.contextmanager
def waits(on_host=()):
    """A list of the lines that would wait for a GPU, filled while the block runs."""
    found: list[str] = []
    with Operations(found, {tensor.data_ptr() for tensor in on_host}), Copies(found):
        yield found


def training_step(cfg, device: str, *, amp: torch.dtype | None = None):
    """The optimizer, and a function that takes a step with two images as the trainer does it."""
    torch.manual_seed(0)
    device = torch.device(device)
    detector = build_detector(cfg).to(device).train()
    criterion = SetCriterion(**SetCriterion.from_config(cfg))
    optimizer = build_optimizer(cfg, detector)
    step = TrainingStep(optimizer, device=device, amp=amp)
    average = MovingAverage(detector, decay=0.9)
    mean, std = (part.to(device) for part in pixel_statistics(cfg))
    pixels = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((64, 64), (48, 60))]
    boxes = [torch.tensor([[5.0, 9, 20, 30], [8, 8, 40, 44]]), torch.tensor([[1.0, 2, 30, 40]])]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]

    def run() -> dict[str, float]:
        images, sizes = pad_images(pixels, mean=mean, std=std)
        targets = Targets.from_images(labels, boxes, sizes, device)
        losses = step(lambda: criterion(detector(images, sizes), targets), [0, 1])
        average.update(0)
        return losses

    return optimizer, run


def test_what_waits_is_seen():
    x = torch.tensor([3.0, 0.0, 1.0])
    asking = [
        *(x.nonzero, x.unique, x.max().item, x.tolist, x.cpu, lambda: x.to("cpu")),
        *(lambda: x[x > 0], lambda: torch.where(x > 0), lambda: 1 if x.sum() else 0),
        lambda: x.clone().index_put_((x > 0,), x[1:]),
    ]
    for ask in asking:
        with waits() as found:
            ask()
        assert len(found) == 1
    with waits(on_host=[x]) as found:
        x[torch.tensor([2, 0])], x.where(x > 0, x), x.to("cpu", non_blocking=True), x[0].item()
    assert not found


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_a_step_waits_once(tiny_config, loss, amp):
    cfg = tiny_config("MODEL.SMCA.LOSS.CLASSIFICATION", loss)
    optimizer, run = training_step(cfg, "cpu", amp=amp)
    run()
    # Where AdamW is not fused, it counts its steps on the host.
    counts = [state["step"] for state in optimizer.state.values()]
    assert cfg.SOLVER.CLIP_GRADIENTS.ENABLED and counts
    with waits(on_host=counts) as found:
        run()
    logged = [line for line in found if line.startswith("step.py") and "values." in line]
    assert 1 <= len(logged) <= 2
    (only,) = [line for line in found if line not in logged]
    assert only.startswith("matcher.py") and ".cpu()" in only


@pytest.mark.parametrize("amp", [False, True])
def test_copies_to_a_gpu_that_wait_are_seen(amp):
    with copies_that_wait() as found, torch.autocast("cuda", enabled=amp):
        x = torch.ones(4, 8, device="cuda")
        assert (x @ x.mT).dtype == (torch.float16 if amp else torch.float32)
        pixels, index = torch.ones(4, 8).pin_memory(), torch.tensor([0, 2])
        x.copy_(pixels, non_blocking=True), x.copy_(pixels, True)
        pixels.to("cuda", non_blocking=True), x.to(torch.float64), pixels.to(torch.float64)
        x[-1:] = 2.0
        x[index.to("cuda", non_blocking=True)]
        x.cpu(), pixels.copy_(x), torch.full((), 3.0, device="cuda")
        assert not found
        for copy in (
            *(lambda: x[..., [0, 2]], lambda: x[index], lambda: x[0].__setitem__(0, 2.0)),
            *(lambda: x.copy_(pixels), lambda: pixels.to("cuda"), lambda: x.new_tensor([1.0])),
        ):
            found.clear()
            copy()
            assert found == ["outside the package"]


@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_the_losses_wait_for_no_copy_to_the_gpu(tiny_config, monkeypatch, loss):
    cfg = tiny_config("MODEL.SMCA.LOSS.CLASSIFICATION", loss)
    criterion = SetCriterion(**SetCriterion.from_config(cfg))
    with copies_that_wait() as found:
        predictions = Predictions(
            logits=torch.randn(2, 3, 10, 4, device="cuda"),
            boxes=torch.rand(2, 3, 10, 4, device="cuda"),
            centers=torch.rand(2, 3, 10, 2, device="cuda"),
        )
        boxes, labels = torch.tensor([[5.0, 9, 20, 30]]), torch.tensor([0])
        cuda = torch.device("cuda")
        targets = Targets.from_images([labels] * 3, [boxes] * 3, [(64, 64)] * 3, cuda)
        # The assignment reads numbers, and has its own test.
        pairs = (torch.zeros(6, dtype=torch.int64, device="cuda") for _ in range(4))
        matches = Matches(*pairs)
        monkeypatch.setattr(criterion, "matcher", lambda *_: matches)
        assert len(criterion(predictions, targets)) == 6
    assert not found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_a_gpu_is_waited_for_once(tiny_config, monkeypatch, loss, amp):
    cfg = tiny_config("MODEL.SMCA.LOSS.CLASSIFICATION", loss)
    _, run = training_step(cfg, "cuda", amp=amp)
    run()
    copies, copy = [], Tensor.cpu

    def cpu(tensor: Tensor) -> Tensor:
        copies.append(place())
        torch.cuda.set_sync_debug_mode("default")
        try:
            return copy(tensor)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Tensor, "cpu", cpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    (only,) = copies
    assert only.startswith("matcher.py")
