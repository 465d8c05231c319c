"""Measure inference: images per second by batch and precision, compiled, and with CUDA graphs."""

from collections.abc import Callable, Iterator

import torch
from measuring import Row, interleave, summary
from workload import Workload

from .check import Check
from .train import MAIN, OTHERS

COMPILED = {"compiled": None, "CUDA graphs": "reduce-overhead"}


def run(check: Check) -> None:
    for number in ("bf16", "fp32", "fp16", "tf32"):
        for batch in check.pick((1, 8, 32), (1,)):
            measure(check, "SMCA", MAIN, batch, number)
    for model, name in OTHERS.items():
        measure(check, model, name, 1, "bf16")
    for number in ("bf16", "fp32"):
        for kind, mode in COMPILED.items():
            if check.cuda or mode is None:
                check.attempt(
                    "compiled inference",
                    lambda number=number, mode=mode: compiled(check, number, mode),
                    how=kind,
                    batch=check.setting(1, number).batch,
                    precision=number,
                )
        if check.tiny:
            break


def measure(check: Check, model: str, name: str, batch: int, number: str) -> None:
    """Add the row of a model's inference, with ``number`` as the precision."""

    def row() -> Row:
        workload = Workload(check.config(name), setting)
        times = interleave(
            {"it": workload.infer}, device=check.device, rounds=check.pick(7, 1), least_seconds=0.1
        )
        timing = summary(times["it"])
        return {"images/s": setting.batch / timing.median, "seconds": timing}

    setting = check.setting(batch, number)
    check.attempt("inference", row, model=model, batch=setting.batch, precision=number)


def compiled(check: Check, number: str, mode: str | None) -> Iterator[Row]:
    """Yield the row of a detector compiled for one image size, compared with eager mode."""
    torch._dynamo.reset()
    workload = Workload(check.config(MAIN), check.setting(1, number))
    before = interleave({"it": workload.infer}, device=check.device, rounds=check.pick(7, 1))
    eager = workload.detector
    # Inductor needs half a minute on a CPU.
    backend = check.pick("inductor", "eager")
    call: Callable[..., object] = torch.compile(
        eager.forward, mode=mode, backend=backend, dynamic=False
    )

    class Compiled(torch.nn.Module):
        def forward(self, *inputs: object) -> object:
            if mode:
                torch.compiler.cudagraph_mark_step_begin()
            return call(*inputs)

    workload.detector = Compiled()
    after = interleave(
        {"it": workload.infer}, device=check.device, rounds=check.pick(7, 1), warm_up=3
    )
    timing, plain = summary(after["it"]), summary(before["it"])
    yield {
        "images/s": workload.setting.batch / timing.median,
        "seconds": timing,
        "time / not compiled": timing.median / plain.median,
    }
