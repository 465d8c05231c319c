"""Check that the device computes the right results, on fused kernels and without waits."""

import contextlib
import functools
import importlib.util
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from co_attention import Case as CoAttentionCase
from co_attention import CoAttention
from measuring import ROOT, Row
from operations import Operations
from roofline import HALF, PRECISIONS, precision
from torch import Tensor
from workload import Setting, Workload

from smca.analysis.host import made_up_targets
from smca.structures import Size

from .check import Check, holds
from .exact import Case, Numbers, errors, errors_with_dropout

# The largest relative errors in norm. In half precision, outputs may err by two to four times the
# error of one rounding (2^-8 in bfloat16, 2^-11 in float16), and gradients by about ten times it.
OUTPUT = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2, "fp16": 2e-3}
GRADIENT = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 4e-2, "fp16": 1e-2}
# Twice the error of one rounding. In the gradients of the Gaussians this error is multiplied by the
# map's longer side in cells, because squares of coordinates cancel there.
ROUNDING = {"fp32": 2e-6, "tf32": 2e-6, "bf16": 2.0**-8, "fp16": 2.0**-11}
DROPOUT = 0.1
# Config and changes of each model.
FAMILIES: dict[str, tuple] = {
    "SMCA": ("smca_R50_50ep",),
    "SMCA, single scale": ("smca_single_scale_R50_50ep",),
    "SMCA, depthwise": ("smca_depthwise_R50_50ep",),
    "SMCA, oriented": ("smca_R50_50ep", "MODEL.SMCA.MODULATION.SCALE", "oriented"),
    "DETR": ("baselines/detr_focal_R50_50ep",),
    "Conditional DETR": ("baselines/conditional_detr_R50_50ep",),
    "Deformable DETR": ("baselines/deformable_detr_R50_50ep",),
}

# Maps of the co-attention, with numbers of images and queries whose float64 matrices fit in memory.
MAPS = {(25, 34): (2, 300), (50, 84): (2, 100), (100, 168): (1, 50)}


def run(check: Check) -> None:
    # Training disables cuDNN's attention, too; see TrainingStep.
    torch.backends.cuda.enable_cudnn_sdp(False)
    smallest, *larger = check.pick(MAPS, {(5, 7): (2, 9)}).items()
    attention(check, *smallest, dropouts=(0.0, DROPOUT))
    check.attempt("same as on a CPU", lambda: like_cpu(check))
    check.attempt("recomputing", lambda: recomputing(check))
    half_precision(check)
    if check.cuda:
        waits(check)
    check.attempt("growth of memory", lambda: growth(check))
    if check.cuda:
        check.attempt("GPU tests", gpu_tests)
    for shape, sizes in larger:
        attention(check, shape, sizes, dropouts=(0.0,))


def attention(
    check: Check, shape: Size, sizes: tuple[int, int], *, dropouts: Sequence[float]
) -> None:
    """Check each kind of Gaussian, with and without padding and dropout, in each precision."""
    kinds = ("independent", "oriented", "single", "fixed", "shared")
    # An exact result takes a CPU a second or more; only the first map has all kinds and dropout.
    for kind in kinds if len(dropouts) > 1 else kinds[:2]:
        for padded in (True, False):
            numbers = Numbers(Case(kind, padded, shape, *sizes))
            exact = functools.cache(numbers.exact)
            for dropout in dropouts if kind == "independent" else dropouts[:1]:
                for number in PRECISIONS:
                    check.attempt(
                        "attention",
                        functools.partial(compared, check, number, numbers, exact, dropout),
                        map="{}x{}".format(*shape),
                        gaussian=kind,
                        padding=padded,
                        dropout=dropout,
                        precision=number,
                    )


def compared(
    check: Check, number: str, numbers: Numbers, exact: Callable[[], tuple], dropout: float
) -> Row:
    """Return the errors in a precision; they pass at the size of rounding, on a fused kernel."""
    if dropout:
        row = errors_with_dropout(numbers, number, check.device, dropout)
    else:
        row = errors(numbers, exact(), number, check.device)
    passed = {
        "output error": row["output error"] <= OUTPUT[number],
        "gradient error": row["gradient error"] <= GRADIENT[number],
        "of Gaussians": row["of Gaussians"] <= ROUNDING[number] * max(numbers.case.shape),
        "dropped": abs(row["dropped"] - dropout) < 0.02,
        # A CPU has no fused kernel with dropout.
        "kernels": row["kernels"] != "math" or (dropout > 0 and not check.cuda),
    }
    wrong = ", ".join(what for what, holding in passed.items() if not holding)
    return row | {"wrong": wrong, "passed": not wrong}


def padded_pair(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes of two images, the second of which needs padding."""
    height, width = size
    return [size, (height * 3 // 4, width - 8)]


def workload_of(check: Check, family: str, device: str, *changes: object) -> Workload:
    """Return a model's workload with random weights; dropout is off unless ``changes`` set it."""
    off = ("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0)
    cfg = check.config(*FAMILIES[family], *off, *changes)
    return Workload(cfg, Setting(check.pick((480, 640), (64, 96)), 2, "fp32", device))


def _images(check: Check) -> Tensor:
    """Return a padded batch of two random images."""
    size = check.pick((480, 640), (64, 96))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    # The range of pixels minus their mean; a tiny backbone would amplify these numbers too much.
    images *= check.pick(50, 5)
    _, (height, width) = padded_pair(size)
    images[1, :, height:] = 0
    images[1, :, :, width:] = 0
    return images


def half_precision(check: Check) -> None:
    """Compare the logits of every model with those of float32."""
    images = _images(check)
    sizes = padded_pair(tuple(images.shape[-2:]))
    for family in FAMILIES:
        found: dict[str, Any] = {}

        def logits(number: str, family: str = family, found: dict = found) -> Row:
            if "detector" not in found:
                workload = workload_of(check, family, str(check.device))
                found["detector"] = workload.detector.eval()
            half = torch.autocast(check.device.type, HALF.get(number), enabled=number in HALF)
            with torch.no_grad(), precision(number), half:
                out = found["detector"](images.to(check.device), sizes).logits
            exact = found.setdefault("exact", out)
            # A tiny detector has fewer channels to average over.
            return holds(float((out - exact).abs().max()), check.pick(2e-2, 1e-1))

        for number in ("fp32", "bf16", "fp16"):
            work = functools.partial(logits, number)
            check.attempt("logits beside float32", work, model=family, precision=number)


def _losses(workload: Workload, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradients of the sum of the losses as one vector."""
    detector = workload.detector.train()
    sizes = padded_pair(tuple(images.shape[-2:]))
    images = images.to(workload.device)
    predictions = detector(images, sizes)
    targets = made_up_targets(images, workload.cfg)
    sum(workload.criterion(predictions, targets).values()).backward()
    gradients = [p.grad.flatten() for p in detector.parameters() if p.grad is not None]
    detector.zero_grad()
    return predictions.logits.detach().cpu(), torch.cat(gradients).cpu()


def like_cpu(check: Check) -> Iterator[Row]:
    """Compare the device with the CPU, with the same weights and images and without TF32."""
    images = _images(check)
    found = []
    for device in ("cpu", str(check.device)):
        with precision("fp32"):
            found.append(_losses(workload_of(check, "SMCA", device), images))
    (logits, gradients), (other_logits, other_gradients) = found
    yield {"what": "logits"} | holds(float((logits - other_logits).abs().max()), 1e-3)
    error = float((gradients - other_gradients).norm() / gradients.norm())
    yield {"what": "gradients, relative"} | holds(error, 1e-2)
    norms = float(abs(other_gradients.norm() / gradients.norm() - 1))
    yield {"what": "norm of the gradients, relative"} | holds(norms, 1e-3)


def recomputing(check: Check) -> Row:
    """Compare the gradients, with dropout, of recomputed blocks and of ordinary blocks."""
    images = _images(check)
    found = []
    for recompute in ("none", "all"):
        changes = (
            *("MODEL.SMCA.DROPOUT", 0.1, "MODEL.SMCA.ATTENTION_DROPOUT", 0.1),
            *("MODEL.SMCA.ENCODER.RECOMPUTE", recompute),
        )
        with precision("fp32"):
            workload = workload_of(check, "SMCA", str(check.device), *changes)
            torch.manual_seed(2)
            found.append(_losses(workload, images)[1])
    return holds(float((found[1] - found[0]).norm() / found[0].norm()), 1e-3)


def waits(check: Check) -> None:
    """Run training steps in which torch raises if the host waits anywhere but in the matcher."""
    for family in FAMILIES:
        for number in ("fp32", *HALF):
            work = functools.partial(_step_without_waits, check, family, number)
            check.attempt("waits of a step", work, model=family, precision=number)


def _step_without_waits(check: Check, family: str, number: str) -> Row:
    """Count the permitted waits of a training step; raise at any other wait."""
    setting = Setting(check.pick((320, 416), (64, 96)), 2, number, str(check.device))
    workload = Workload(check.config(*FAMILIES[family]), setting)
    workload.train()
    permitted: list = []
    with _only_where_permitted(permitted):
        workload.train()
    return holds(len(permitted), 1)


@contextlib.contextmanager
def _only_where_permitted(seen: list) -> Iterator[None]:
    """Make torch raise at every wait except ``Tensor.cpu``, which the matcher calls for its costs.

    ``seen`` collects the shapes of the tensors that this call transfers.
    """
    cpu = Tensor.cpu

    def permitted(tensor: Tensor) -> Tensor:
        seen.append(tensor.shape)
        torch.cuda.set_sync_debug_mode("default")
        try:
            return cpu(tensor)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    torch.cuda.set_sync_debug_mode("error")
    Tensor.cpu = permitted
    try:
        yield
    finally:
        Tensor.cpu = cpu
        torch.cuda.set_sync_debug_mode("default")


def growth(check: Check) -> Iterator[Row]:
    """Yield the power with which memory grows with keys, queries and both, in both passes."""
    rows, columns = check.pick((25, 84), (5, 8))
    queries = check.pick(300, 20)
    for what in ("keys", "queries", "keys and queries"):
        sizes = []
        for factor in (1, 2, 4, 8):
            case = CoAttentionCase(
                (rows * (factor if "keys" in what else 1), columns),
                check.pick(4, 1),
                queries * (factor if "queries" in what else 1),
                "fp32",
                str(check.device),
            )
            sizes.append(_needed(CoAttention(case).work("fused", backward=True), check))
        logs = [[math.log(x) for x in series] for series in ((1, 2, 4, 8), sizes)]
        power = statistics.linear_regression(*logs).slope
        yield {"by": what} | holds(power, 1.1)


def _needed(work: Callable[[], object], check: Check) -> int:
    """Return the peak memory of ``work`` in bytes; on a CPU, the elements of its largest tensor."""
    if not check.cuda:
        with Operations() as operations:
            work()
        return operations.largest
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(check.device)
    torch.cuda.reset_peak_memory_stats(check.device)
    work()
    return torch.cuda.max_memory_allocated(check.device) - before


def gpu_tests() -> Row:
    """Run the tests that are marked gpu."""
    if importlib.util.find_spec("pytest") is None:
        return {"result": "pytest is not installed: pip install pytest hypothesis"}
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    arguments = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*arguments, *files], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    said = re.findall(r"^=*\s*(\d+ (?:passed|failed).*?)\s*=*$", done.stdout, re.M)
    return {"result": said[-1] if said else "no test ran", "passed": done.returncode == 0}
