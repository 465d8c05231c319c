#!/usr/bin/env python3
"""Check within minutes whether SMCA is set up right on this machine's GPU, and how fast it is.

Each stage runs in its own process and receives a share of the time; later stages receive the time
that it leaves. If a stage fails or exceeds its time, the program prints the reason and starts the
next stage. FOLDER/gpu_check.json grows with every measured row, and FOLDER/STAGE.log contains a
stage's output. The exit code is 1 if a check did not pass, a stage failed or "right" is incomplete.

facts: device, driver, versions, and the peaks of matrix products and copies.
right: the attention and its gradients against float64, and the kernels that it uses; the logits of
  every model in half precision; the waits of a training step; the growth of memory; the GPU tests.
train: images per second, memory and the share of each part, by batch, precision and model.
ablation: optimisations and alternatives beside the project's defaults.
infer: images per second by batch and precision, compiled, and with CUDA graphs.
feed: images per second that loader processes deliver, and how many processes the training needs.
learn: AP and time of the quickstart's model with and without mixed precision.
race: the medium race of convergence.py within the given time; the same folder continues it.

The check needs the project's requirements only: no dataset, no network and no Detectron2.

Examples:
    python benchmarks/gpu_check.py --minutes 8 --output benchmarks/out/gpu
    python benchmarks/gpu_check.py --stages facts right --minutes 3
    python benchmarks/gpu_check.py --tiny --device cpu
    python benchmarks/gpu_check.py --report benchmarks/results/*.json --docs
"""

import argparse
import contextlib
import gc
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from gpu_stages import report
from gpu_stages.check import Check
from gpu_stages.record import CUT_OFF, DONE, FAILED, STOPPED, Record
from measuring import OUT
from origin import describe

from smca.config import ConfigError
from smca.distributed import end_with_parent
from smca.engine.guard import guarded

# The stages in their order, with their shares of the time as seconds of 8 minutes. A stage also
# receives the time that earlier stages leave.
SHARES = {
    "facts": 22,
    "right": 105,
    "train": 115,
    "ablation": 70,
    "infer": 40,
    "feed": 18,
    "learn": 90,
    "race": 20,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="most minutes for all stages")
    parser.add_argument("--output", type=Path, default=OUT / "gpu", help="output folder")
    parser.add_argument("--stages", nargs="+", default=list(SHARES), help="stages to run")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--tiny", action="store_true", help="rehearse at small sizes")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument(
        "--report", nargs="+", type=Path, metavar="FILE", help="print these results"
    )
    parser.add_argument("--docs", action="store_true", help="also write the tables into docs/")
    # The process of a stage receives these two.
    parser.add_argument("--work", choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    # Stages may be separated by commas, too.
    args.stages = [name for word in args.stages for name in word.split(",") if name]
    if args.minutes <= 0:
        parser.error(f"--minutes is {args.minutes:g}; it must be positive")
    if unknown := set(args.stages) - set(SHARES):
        parser.error(f"--stages: {', '.join(unknown)}; there are {', '.join(SHARES)}")
    return args


def require_device(device: str) -> None:
    """Check that this machine has the device.

    Raises:
        ConfigError: the name is not valid, or the machine lacks the device.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {device!r}; it must be cuda, cuda:1, ... or cpu")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        raise ConfigError(
            f"--device is {device}, but torch sees no GPU; torch {torch.__version__} {built} "
            "(nvidia-smi reports the driver's version); --device cpu --tiny rehearses without a GPU"
        )
    count, index = torch.cuda.device_count(), torch.device(device).index
    if index is not None and index >= count:
        raise ConfigError(f"--device is {device}; there are {count} GPUs, cuda:0 is the first")


def limits(stages: list[str], seconds: float, taken: int) -> float:
    """Return the time for stage number ``taken`` of ``stages``.

    Args:
        stages: all stages of this run.
        seconds: the time that remains for this stage and the later ones.
        taken: number of stages that have already run.
    """
    return seconds * SHARES[stages[taken]] / sum(SHARES[name] for name in stages[taken:])


def command(args: argparse.Namespace, name: str, limit: float) -> list[str]:
    """Return the command line of a stage's process."""
    flags = ["--tiny"] if args.tiny else []
    where = ["--output", str(args.output), "--device", args.device]
    return [sys.executable, __file__, "--work", name, "--limit", f"{limit:.1f}", *where, *flags]


def run_stage(args: argparse.Namespace, record: Record, name: str, limit: float) -> dict:
    """Run a stage until it ends or its time is over, and return its record."""
    record.begin_stage(name, limit)
    begun = time.monotonic()
    log = args.output / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(args, name, limit), stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        except SystemExit:
            end(process)
            record.end_stage(status=STOPPED, reason="by a signal")
            raise
    end(process)
    facts: dict[str, object] = {"seconds": round(time.monotonic() - begun, 1)}
    if code is None:
        facts |= {"status": CUT_OFF, "reason": f"not done after {limit:.0f} s"}
    elif code:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        facts |= {"status": FAILED, "reason": said[-1][:300] if said else f"exit code {code}"}
    else:
        facts |= {"status": DONE}
    return record.end_stage(**facts)


def end(process: subprocess.Popen) -> None:
    """Kill a stage and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_with_program() -> None:
    """Make this stage and all processes that it starts end with the main program."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    end_with_parent(grace=5.0)


def work(args: argparse.Namespace) -> int:
    """Run one stage, in its own process."""
    end_with_program()
    check = Check(args.device, tiny=args.tiny, record=Record(args.output), limit=args.limit)
    if check.cuda:
        torch.cuda.set_device(check.device.index or 0)
    stage = importlib.import_module(f"gpu_stages.{args.work}")
    # Otherwise each garbage collection would traverse all imported modules.
    gc.freeze()
    stage.run(check)
    if check.left:
        check.record.end_stage(reason=f"no time for {'; '.join(check.left)}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Run the stages, and return the exit code."""
    if args.dry_run:
        left = args.minutes * 60
        for number, name in enumerate(args.stages):
            limit = limits(args.stages, left, number)
            print(f"{name}, {limit:.0f} s: {shlex.join(command(args, name, limit))}")
            left -= limit
        return 0
    require_device(args.device)
    args.output = args.output.resolve()
    record = Record(args.output)
    told = shlex.join(["python", "benchmarks/gpu_check.py", *sys.argv[1:]])
    threads = f"{torch.get_num_threads()} threads"
    facts = describe(told, threads=threads, device=args.device)
    record.begin_run(**facts, tiny=args.tiny, begun=time.strftime("%Y-%m-%d %H:%M"))
    for number in (signal.SIGTERM, signal.SIGINT):
        # run_stage catches the exit and ends the running stage.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    until = time.monotonic() + args.minutes * 60
    stages = []
    for number, name in enumerate(args.stages):
        limit = limits(args.stages, until - time.monotonic(), number)
        print(f"{name} (at most {limit:.0f} s) ... ", end="", flush=True)
        stage = run_stage(args, record, name, limit)
        stages.append(stage)
        print(f"{stage['status']}, {stage['seconds']:.0f} s {stage['reason']}", flush=True)
    print(report.tables([record.runs()[-1]]))
    failures = report.failures(stages)
    print(*failures, record.path, sep="\n")
    return 1 if failures else 0


def main() -> int:
    args = parse()
    if args.report:
        return report.main(args.report, docs=args.docs)
    return work(args) if args.work else run(args)


if __name__ == "__main__":
    sys.exit(guarded(main))
