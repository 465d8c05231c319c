#!/usr/bin/env python3
"""Is SMCA set up right on this machine's GPU, and how fast is it there? One command, in minutes.

Each stage runs in a process of its own and has a share of the time; what one leaves, the next ones
have. A stage that fails or is cut off is a line with its reason, and the next one begins.
FOLDER/gpu_check.json grows with every row that is measured, and FOLDER/STAGE.log has what a stage
printed. The exit code is 1 where a check did not pass or a stage failed, or right is not complete.

facts: device, driver, versions, and the peaks of matrix products and copies.
right: the attention and its gradients against float64, and the kernels it runs on; the logits of
  every model in half precision; what a training step waits for; how memory grows; GPU tests.
train: images a second, memory and the share of each part, by batch, precision and model.
ablation: means that may be faster, beside the project's defaults.
infer: images a second by batch and precision, compiled, and with CUDA graphs.
feed: images a second that loader processes deliver, and how many processes the training needs.
learn: the quickstart's model with and without mixed precision: its AP and its time.
race: the medium race of convergence.py, as far as the time goes; the same folder continues it.

Nothing but the project's requirements is needed: no dataset, no network, no Detectron2.

Examples:
    python benchmarks/gpu_check.py --minutes 8 --output benchmarks/out/gpu
    python benchmarks/gpu_check.py --stages facts right --minutes 3
    python benchmarks/gpu_check.py --tiny --device cpu
    python benchmarks/gpu_check.py --report benchmarks/results/*.json --docs
"""

from __future__ import annotations

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

# In this order, and with these shares of the time: seconds of 8 minutes, of which a stage also has
# what those before it have left.
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
    parser.add_argument("--minutes", type=float, default=8.0, help="at most, of all stages")
    parser.add_argument("--output", type=Path, default=OUT / "gpu", help="folder")
    parser.add_argument("--stages", nargs="+", default=list(SHARES), help="of those above")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--tiny", action="store_true", help="rehearse at small sizes")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    parser.add_argument("--report", nargs="+", type=Path, metavar="FILE", help="print its tables")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/, too")
    # Of the process of one stage.
    parser.add_argument("--work", choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    # Words with commas, too.
    args.stages = [name for word in args.stages for name in word.split(",") if name]
    if args.minutes <= 0:
        parser.error(f"--minutes is {args.minutes:g}; it must be positive")
    if unknown := set(args.stages) - set(SHARES):
        parser.error(f"--stages: {', '.join(unknown)}; there are {', '.join(SHARES)}")
    return args


def require_device(device: str) -> None:
    """
    Raises:
        ConfigError: it is not there.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {device!r}; it must be cuda, cuda:1, ... or cpu")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        raise ConfigError(
            f"--device is {device}, but torch sees no GPU; torch {torch.__version__} {built} "
            "(nvidia-smi says which the driver has); --device cpu --tiny rehearses without one"
        )
    count, index = torch.cuda.device_count(), torch.device(device).index
    if index is not None and index >= count:
        raise ConfigError(f"--device is {device}; there are {count} GPUs, cuda:0 is the first")


def limits(stages: list[str], seconds: float, taken: int) -> float:
    """Seconds for stage number ``taken`` of ``stages``, of those that are left for it and later."""
    return seconds * SHARES[stages[taken]] / sum(SHARES[name] for name in stages[taken:])


def command(args: argparse.Namespace, name: str, limit: float) -> list[str]:
    """The command line of the process of a stage."""
    flags = ["--tiny"] if args.tiny else []
    where = ["--output", str(args.output), "--device", args.device]
    return [sys.executable, __file__, "--work", name, "--limit", f"{limit:.1f}", *where, *flags]


def run_stage(args: argparse.Namespace, record: Record, name: str, limit: float) -> dict:
    """Run a stage to its end, or until its time is over; returns what is recorded of it."""
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
    """End a stage with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_with_program() -> None:
    """Have a stage end once the program has, with all that the stage has started."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    end_with_parent(grace=5.0)


def work(args: argparse.Namespace) -> int:
    """What the process of a stage does."""
    end_with_program()
    check = Check(args.device, tiny=args.tiny, record=Record(args.output), limit=args.limit)
    if check.cuda:
        torch.cuda.set_device(check.device.index or 0)
    stage = importlib.import_module(f"gpu_stages.{args.work}")
    # Else each look for what can be freed would go through all that was imported.
    gc.freeze()
    stage.run(check)
    if check.left:
        check.record.end_stage(reason=f"no time for {'; '.join(check.left)}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Run the stages; returns the exit code."""
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
        # By way of run_stage, which ends what runs.
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
