"""Measure training steps: images per second, memory, and the share of each part."""

import functools
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from measuring import Row, interleave, quotient, ratio, summary
from model import attending
from references import UNFUSED_RECIPE
from roofline import HALF, measured_peaks, precision
from torch import Tensor
from torch.autograd import DeviceType
from workload import Workload

from smca.analysis.counting import count_model
from smca.analysis.host import detector_subject

from .check import Check

MAIN = "smca_R50_50ep"
OTHERS = {
    "SMCA, single scale": "smca_single_scale_R50_50ep",
    "SMCA, 11 groups": "plus/group_smca_R50_50ep",
    "DETR": "baselines/detr_focal_R50_50ep",
    "Conditional DETR": "baselines/conditional_detr_R50_50ep",
    "SMCA, depthwise": "smca_depthwise_R50_50ep",
}
# The kinds of kernels with patterns of their names; the first match counts.
KINDS = {
    "attention": r"flash|fmha|attention|sdpa",
    "convolution": r"conv|wgrad|dgrad|implicit|nhwc|nchw|winograd",
    "matrix product": r"gemm|nvjet|cutlass|splitK|cublas|matmul",
    "optimizer": r"adam|multi_tensor|foreach",
    "normalisation": r"norm",
    "copy": r"memcpy|memset|copy|Cat",
}


def run(check: Check) -> None:
    variants = ["fused", "unfused", UNFUSED_RECIPE]
    rounds = check.pick(5, 1)
    measure(check, "SMCA", MAIN, 4, "bf16", variants, rounds)
    measure(check, "SMCA", MAIN, 16, "bf16", ["fused"], rounds)
    measure(check, "SMCA", MAIN, 2, "bf16", ["fused"], rounds)
    check.attempt("encoder and decoder", lambda: parts(check, 16, "bf16"))
    for batch in (16, 2):
        check.attempt(
            "kernels of a step",
            functools.partial(kernels, check, batch, "bf16"),
            batch=check.setting(batch, "bf16").batch,
            precision="bf16",
        )
    if check.tiny:
        return
    for number in ("fp16", "tf32", "fp32"):
        measure(check, "SMCA", MAIN, 4, number, ["fused"], rounds)
    for batch in (1, 8):
        measure(check, "SMCA", MAIN, batch, "bf16", ["fused"], rounds)
    for model, name in OTHERS.items():
        measure(check, model, name, 4, "bf16", ["fused"], rounds)
    check.attempt("encoder and decoder", lambda: parts(check, 4, "bf16"))
    for number in ("tf32", "fp32"):
        measure(check, "SMCA", MAIN, 4, number, variants[:2], 3)
    for number in ("fp16", "tf32", "fp32"):
        for batch in (16, 1, 2, 8):
            measure(check, "SMCA", MAIN, batch, number, ["fused"], 3)


def measure(
    check: Check, model: str, name: str, batch: int, number: str, variants: list[str], rounds: int
) -> None:
    """Add the rows of a model's training steps with each variant of attention.

    Another row has the shares of the parts with the project's attention. ``number`` names the
    precision.
    """
    setting = check.setting(batch, number)
    case = {"model": model, "batch": setting.batch, "precision": number}
    workload = Workload(check.config(name), setting)
    resting = torch.cuda.memory_allocated(check.device) if check.cuda else 0

    def rows() -> Iterator[Row]:
        works = {v: attending(v, workload.train) for v in variants}
        times = interleave(works, device=check.device, rounds=rounds)
        for variant, seconds in times.items():
            timing = summary(seconds)
            peak = _peak(works[variant], check)
            yield {
                "attention": variant,
                "images/s": setting.batch / timing.median,
                "seconds": timing,
                "peak GiB": None if peak is None else (peak - resting) / 2**30,
                "time / unfused": ratio(times, variant, "unfused"),
                "time / unfused, dropout": ratio(times, variant, UNFUSED_RECIPE),
            }
        for missing in set(variants) - set(times):
            yield {"attention": missing, "error": "out of memory"}

    def shares() -> Row:
        runs = [workload.stages(workload.train) for _ in range(3)]
        total = statistics.median(sum(run.values()) for run in runs)
        return {stage: statistics.median(r[stage] for r in runs) / total for stage in runs[0]}

    check.attempt("training", rows, **case)
    check.attempt("shares of a step", shares, **case)


def _peak(work: Callable[[], object], check: Check) -> int | None:
    """Return the peak memory of a step in bytes, including the resting model; None on a CPU."""
    if not check.cuda:
        return None
    torch.cuda.reset_peak_memory_stats(check.device)
    work()
    return torch.cuda.max_memory_allocated(check.device)


def parts(check: Check, batch: int, number: str) -> Iterator[Row]:
    """Yield the rows of encoder and decoder, forward and backward, with their share of the peak."""
    setting = check.setting(batch, number)
    workload = Workload(check.config(MAIN), setting)
    detector = workload.detector
    # These counts are for one image; the backward pass computes twice as much as the forward pass.
    subject = detector_subject(detector, workload.cfg)
    counts = count_model(subject, size=setting.size, activations=False).parts
    detector.train()
    half = torch.autocast(check.device.type, HALF.get(number), enabled=number in HALF)
    with precision(number) as dtype:
        peak = measured_peaks(check.device, dtype).flops
        with torch.no_grad(), half:
            sizes = [setting.size] * setting.batch
            images = torch.zeros(setting.batch, 3, *setting.size, device=check.device)
            memory = detector.neck(detector.backbone(images), sizes)
        memory = memory.with_tokens(memory.tokens.detach().requires_grad_())

        def both(module: torch.nn.Module, result: Callable[[object], Tensor]) -> None:
            with half:
                out = result(module(memory))
            out.backward(torch.ones_like(out))

        works = {
            "encoder": functools.partial(both, detector.encoder, lambda found: found.tokens),
            "decoder": functools.partial(both, detector.decoder, lambda found: found[0]),
        }
        times = interleave(works, device=check.device, rounds=check.pick(5, 1))
        for name, seconds in times.items():
            timing = summary(seconds)
            flops = 3 * 2 * counts[name].multiply_adds * setting.batch
            yield {
                "part": name,
                "batch": setting.batch,
                "precision": number,
                "seconds": timing,
                "tflops": flops / timing.median / 1e12,
                "of the measured peak": flops / timing.median / peak,
            } | _kinds(works[name], check)


def kernels(check: Check, batch: int, number: str) -> list[Row]:
    """Return the device's time in a step by kinds of kernels, and the longest kernels."""
    workload = Workload(check.config(MAIN), check.setting(batch, number))
    workload.train()
    return [_kinds(workload.train, check), *_longest(workload.train, check)]


def _events(work: Callable[[], object], check: Check) -> tuple[Counter[str], int]:
    """Return the device's microseconds by kernel, and the number of launched kernels.

    On a CPU, operations take the place of kernels.
    """
    work()
    with torch.profiler.profile(acc_events=True) as profile:
        work()
        if check.cuda:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if check.cuda else DeviceType.CPU
    found: Counter[str] = Counter()
    launched = 0
    for event in profile.events():
        if event.device_type == wanted and not event.is_user_annotation:
            launched += 1
            found[event.name] += (
                event.self_device_time_total if check.cuda else event.self_cpu_time_total
            )
    return found, launched


def _kinds(work: Callable[[], object], check: Check) -> Row:
    found: Counter[str] = Counter()
    kernels, launched = _events(work, check)
    for name, spent in kernels.items():
        kind = (kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.I))
        found[next(kind, "other")] += spent
    total = sum(found.values())
    shares = {kind: quotient(found[kind], total) for kind in (*KINDS, "other")}
    # The work takes longer than these seconds, because the device also waits for the host.
    return {"launched": launched, "busy seconds": total / 1e6, **shares}


def _longest(work: Callable[[], object], check: Check) -> list[Row]:
    found, _ = _events(work, check)
    total = sum(found.values())
    return [{"of": name[:120], "share": spent / total} for name, spent in found.most_common(12)]
