"""Compare optimisations and alternatives with the project's defaults on a GPU."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch
import torch.nn.functional as F
from ablation import ABLATIONS, DEFAULT, Ablation, Worker
from co_attention import Case, CoAttention
from measuring import Row, interleave, ratio, summary
from torch import Tensor
from workload import Setting, Workload

from smca.engine import step
from smca.modeling import attention, backbone, gaussians
from smca.modeling.attention import Attention, attend
from smca.modeling.gaussians import Grid
from smca.modeling.layers import full_precision
from smca.modeling.smca_decoder import ModulatedCoAttention

from .check import Check
from .flex import flex_attend
from .train import MAIN


def own_width(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    biases: list = (),
    dropout: float = 0.0,
) -> Tensor:
    """Attend without padding the values to the keys' width, which flash kernels require."""
    query, key = attention._with_biases(query, key, biases)
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=1.0)


def pairwise_distance(a: Tensor, b: Tensor, p: int) -> Tensor:
    """Return ``torch.cdist(a, b, p=1)``, computed by plain operations."""
    return (a[..., :, None, :] - b[..., None, :, :]).abs().sum(-1)


def in_float32(
    self: ModulatedCoAttention, query: Tensor, key: Tensor, value: Tensor, biases: Sequence = ()
) -> Tensor:
    """Compute the co-attention in float32, also within autocast."""
    with full_precision(query.device):
        out = Attention.attend(self, query.float(), key.float(), value.float(), biases)
    return out.to(query.dtype)


@contextlib.contextmanager
def co_attention_in_float32() -> Iterator[None]:
    """Compute the co-attention in float32, and store each factor of log G as one float32."""
    of = Grid.of

    def wide(*args: object, **options: object) -> Grid:
        return of(*args, **{**options, "dtype": torch.float32})

    with (
        mock.patch.object(ModulatedCoAttention, "attend", in_float32),
        mock.patch.object(Grid, "of", wide),
    ):
        yield


# Ablations to compare with the default in training steps of SMCA.
STEPS = {
    "co-attention in float32": Ablation(taken=False, patch=co_attention_in_float32),
    "channels last": Ablation(
        taken=True, patch=lambda: mock.patch.object(backbone, "CHANNELS_LAST", ())
    ),
    "values of their own width": Ablation(
        taken=False, patch=lambda: mock.patch.object(attention, "attend", own_width)
    ),
    "two bfloat16 numbers for a float32": Ablation(
        taken=False, patch=lambda: mock.patch.dict(gaussians.PARTS, {torch.bfloat16: 2})
    ),
    "cuDNN attention": Ablation(taken=False, patch=lambda: cudnn(True)),
    "compiled blocks": ABLATIONS["compiled"],
    "fused AdamW": ABLATIONS["fused optimizer"],
    "frozen batch norm inside convolutions": ABLATIONS["frozen batch norm inside convolutions"],
    "L1 costs by plain operations": Ablation(
        taken=False, patch=lambda: mock.patch.object(torch, "cdist", pairwise_distance)
    ),
    "foreach clipping": ABLATIONS["foreach clipping"],
}


@contextlib.contextmanager
def cudnn(enabled: bool) -> Iterator[None]:
    """Allow or forbid torch to choose cuDNN's attention."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def run(check: Check) -> None:
    # A large batch keeps the device busy; with a small one the host limits the speed.
    batch = 16
    first = ["co-attention in float32", "channels last", "cuDNN attention"]
    compare(check, first, batch, "bf16")
    co_attention(check, "bf16")
    if not check.tiny:
        compare(check, ["compiled blocks"], 2, "bf16")
    for enabled in (False, True):
        for dropout in (0.1, 0.0):
            check.attempt(
                "images of many sizes",
                functools.partial(many_sizes, check, enabled, dropout),
                cuDNN=enabled,
                dropout=dropout,
            )
    for scale in (2.0**16, 2.0**10):
        check.attempt(
            "float16's first steps", functools.partial(first_steps, check, scale), scale=scale
        )
    rest = [name for name in STEPS if name not in (*first, "compiled blocks")]
    compare(check, rest, batch, "bf16")
    for number in ("fp32", "tf32"):
        compare(check, ["values of their own width"], batch, number)
    co_attention(check, "fp32")


def compare(check: Check, names: Sequence[str], batch: int, number: str) -> None:
    """Time training steps with and without each of the named ablations."""
    setting = check.setting(batch, number)
    usual = functools.cache(lambda: Worker(check.config(MAIN), setting, DEFAULT, "training"))
    for name in names:
        work = functools.partial(steps, check, STEPS[name], usual, setting)
        check.attempt("ablation", work, ablation=name, batch=setting.batch, precision=number)


def steps(check: Check, ablation: Ablation, default: Callable[[], Worker], setting: Setting) -> Row:
    """Return the times of a training step with and without an ablation."""
    usual, other = default(), Worker(check.config(MAIN), setting, ablation, "training")
    both = ("with", "without") if ablation.taken else ("without", "with")
    functions = dict(zip(both, (usual, other), strict=True))
    times = interleave(functions, device=check.device, rounds=check.pick(5, 1))
    return {
        "taken": ablation.taken,
        "seconds with": summary(times["with"]),
        "seconds without": summary(times["without"]),
        "with / without": ratio(times, "with", "without"),
    }


def co_attention(check: Check, number: str) -> None:
    """Time one co-attention, forward and backward, with several ways to add log G."""
    for shape in check.pick(((50, 84), (100, 168)), ((5, 7),)):
        case = Case(shape, check.pick(4, 1), check.pick(300, 9), number, str(check.device))
        check.attempt(
            "co-attention",
            functools.partial(ways, check, case),
            map="{}x{}".format(*shape),
            batch=case.batch,
            precision=number,
        )


def ways(check: Check, case: Case) -> Iterator[Row]:
    """Yield a row for each way to compute the co-attention."""
    numbers = CoAttention(case)
    fused = numbers.work("fused", backward=True)

    def patched(attend: Callable) -> Callable[[], object]:
        def work() -> object:
            with mock.patch.object(attention, "attend", attend):
                return fused()

        return work

    def float32(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        halves = query.dtype
        return attend(query.float(), key.float(), value.float(), **options).to(halves)

    def fewer_parts() -> object:
        with mock.patch.dict(gaussians.PARTS, {torch.bfloat16: 2}):
            return fused()

    works = {
        "fused": fused,
        "own width": patched(own_width),
        "two parts": fewer_parts,
        "float32": patched(float32),
        "dense mask": numbers.work("dense", backward=True),
        "unfused": numbers.work("unfused", backward=True),
    }
    if check.cuda:
        works["FlexAttention"] = flex_attend(numbers)
    times = interleave(works, device=check.device, rounds=check.pick(7, 1), least_seconds=0.02)
    for name, seconds in times.items():
        yield {
            "way": name,
            "seconds": summary(seconds),
            "time / fused": ratio(times, name, "fused"),
        }


def many_sizes(check: Check, enabled: bool, dropout: float) -> Row:
    """Return the time of a first and of a second pass over batches of many image sizes.

    In the first pass, cuDNN may build a plan for each size.
    """
    cfg = check.config(MAIN, "MODEL.SMCA.ATTENTION_DROPOUT", dropout)
    sizes = [(480 + 32 * i, 1333 - 40 * i) for i in range(check.pick(10, 1))]
    if check.tiny:
        sizes = [(64, 96)]
    workload = Workload(cfg, Setting((64, 96), 2, "bf16", str(check.device)))
    with cudnn(enabled):
        workload.train()
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            for size in sizes:
                workload.see(size, 2)
                workload.train()
            if check.cuda:
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - begun) / len(sizes))
    first, second = seconds
    return {"sizes": len(sizes), "seconds a step, first": first, "again": second}


def first_steps(check: Check, scale: float) -> Row:
    """Count how many of a run's first steps float16 skips because of overflow."""
    with mock.patch.object(step, "INITIAL_SCALE", scale):
        workload = Workload(check.config(MAIN), check.setting(2, "fp16"))
    lost, count = 0, check.pick(30, 2)
    for _ in range(count):
        before = workload.step.scaler.get_scale()
        workload.train()
        lost += workload.step.scaler.get_scale() < before
    return {"steps": count, "lost": lost, "scale after": workload.step.scaler.get_scale()}
