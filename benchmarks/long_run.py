#!/usr/bin/env python3
"""Check over a whole training run that memory and numbers of files and threads do not grow.

train_net.py runs in its own process. Every --interval seconds, /proc reports the memory, files and
threads of the trainer and its loaders. The run includes evaluations and checkpoints, but an
evaluation starts loaders of its own. So only samples with the usual number of processes count. The
last line of metrics.json gives a sample's iteration. A row of the table covers --window iterations:
resident: the trainer's memory in MiB, the median of the samples.
total: the memory of trainer and loaders in MiB without mapped files such as libraries, counting
  shared memory once; the median of the samples.
files: their number for trainer and loaders, the least of the samples: batches on their way have
  files too.
threads, processes: the numbers for trainer and loaders, the median of the samples.
shared: files of shared memory, which hold the tensors of batches in transit; the median and the
  most of the samples.
The targets compare the first row, after --warm-up iterations, with the last: memory grows by less
than 2 %; the numbers of open files, threads and processes do not grow; and the last row's median of
shared files does not exceed the first row's most. A CSV file and a picture beside the JSON file
contain all samples. --opts KEY VALUE ... changes the config.

Examples:
    python benchmarks/long_run.py
    python benchmarks/long_run.py --engines native --warm-up 100 --opts SOLVER.MAX_ITER 400
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from footprint import Footprint, footprint
from matplotlib.figure import Figure
from measuring import OUT, ROOT, PerformanceTarget, Row, write

from smca.engine.arguments import add_import
from smca.engine.guard import guarded
from smca.hosts import has_detectron2
from smca.visualization.curves import finish_axes

ENGINES = ["native", *(["detectron2"] if has_detectron2() else [])]
# The quickstart's own run is shorter.
LONGER = ["SOLVER.MAX_ITER", "2000"]
TARGET_GROWTH = 0.02
MEMORY = ("resident", "total")
COUNTS = ("files", "threads", "processes")


@dataclass(frozen=True)
class Sample:
    """The footprint of a run at one moment.

    Attributes:
        seconds: time since the start of the run.
        iteration: number of iterations that metrics.json reports as done.
        held: memory, files and threads of the trainer and its loaders.
    """

    seconds: float
    iteration: int
    held: Footprint


def watch(command: Sequence[str], folder: Path, interval: float) -> list[Sample]:
    """Run a program that trains in ``folder``, and sample its footprint until it ends.

    Raises:
        SystemExit: the program failed; its output is printed.
    """
    samples: list[Sample] = []
    log = folder / "printed.txt"
    with log.open("w") as file:
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if held := footprint(process.pid):
                    iteration = iterations_done(folder / "metrics.json")
                    samples.append(Sample(time.perf_counter() - begun, iteration, held))
                time.sleep(interval)
        finally:
            process.kill()
    if process.returncode:
        print(log.read_text(), file=sys.stderr)
        raise SystemExit(process.returncode)
    return samples


def iterations_done(metrics: Path) -> int:
    """Return the number of iterations that a run's ``metrics.json`` reports as done."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))  # enough for a few lines
        lines = file.read().splitlines()
    # The first and the last line may be incomplete.
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    return json.loads(whole[-1])["iteration"] + 1 if whole else 0


def training_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples after the first iterations that have the usual number of processes."""
    begun = [sample for sample in samples if sample.iteration]
    usual = statistics.mode(sample.held.processes for sample in begun)
    return [sample for sample in begun if sample.held.processes == usual]


def windows(samples: Sequence[Sample], *, warm_up: int, window: int, count: int) -> list[Row]:
    """Return a row for each of ``count`` windows of iterations, from ``warm_up`` to the end.

    Raises:
        RuntimeError: a window has no samples.
    """
    last = max(sample.iteration for sample in samples) - window
    rows: list[Row] = []
    for number in range(count):
        begin = warm_up + (last - warm_up) * number // (count - 1)
        inside = [s.held for s in samples if begin < s.iteration <= begin + window]
        if not inside:
            raise RuntimeError(
                f"there is no sample of iterations {begin} to {begin + window}; take a shorter "
                "--interval, a longer --window or more iterations"
            )
        held = {field.name: [getattr(h, field.name) for h in inside] for field in fields(Footprint)}
        rows.append(
            {
                "after": begin,
                "samples": len(inside),
                **{name: statistics.median(held[name]) / 2**20 for name in MEMORY},
                "files": min(held["files"]),
                **{
                    name: statistics.median_low(held[name])
                    for name in ("threads", "processes", "shared")
                },
                "most shared": max(held["shared"]),
            }
        )
    return rows


def targets(engine: str, first: Row, last: Row) -> list[PerformanceTarget]:
    """Compare the growth from the first to the last row with the targets."""
    found = []
    for name in MEMORY:
        growth = last[name] / first[name] - 1
        found.append(PerformanceTarget(f"{engine}: {name}, growth", growth, TARGET_GROWTH))
    for name in COUNTS:
        found.append(PerformanceTarget(f"{engine}: {name}, more", last[name] - first[name], 0))
    more = last["shared"] - first["most shared"]
    found.append(PerformanceTarget(f"{engine}: shared, more than the most", more, 0))
    return found


def write_samples(runs: dict[str, list[Sample]], path: Path) -> None:
    """Write all samples as CSV, with memory in bytes."""
    names = [field.name for field in fields(Footprint)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["engine", "seconds", "iteration", *names])
        for engine, samples in runs.items():
            for s in samples:
                writer.writerow([engine, f"{s.seconds:.2f}", s.iteration, *asdict(s.held).values()])


def draw_samples(runs: dict[str, list[Sample]], path: Path) -> None:
    """Draw each run's memory, files and threads over its iterations, including evaluations."""
    figure = Figure(figsize=(11, 3.6 * len(runs)), dpi=120, layout="constrained")
    for engine, (memory, counts) in zip(
        runs, figure.subplots(len(runs), 2, squeeze=False), strict=True
    ):
        samples = runs[engine]
        iterations = [sample.iteration for sample in samples]
        for axes, names, unit in ((memory, MEMORY, 2**20), (counts, (*COUNTS, "shared"), 1)):
            for name in names:
                values = [getattr(sample.held, name) / unit for sample in samples]
                axes.plot(iterations, values, label=name, linewidth=1)
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9)
            finish_axes(axes, "iteration")
        memory.set_title(f"{engine}: MiB", loc="left")
        counts.set_title("open files, threads, processes", loc="left")
    figure.savefig(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="configs/quickstart.yaml", help="default: %(default)s"
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--warm-up", type=int, default=300, help="iterations before the first row")
    parser.add_argument("--window", type=int, default=100, help="iterations in each row")
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--output", type=Path, default=OUT / "long_run.json", help="JSON file")
    add_import(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="comes last"
    )
    return parser.parse_args()


def main() -> int:
    args = parse()
    runs: dict[str, list[Sample]] = {}
    table: list[Row] = []
    compared: list[PerformanceTarget] = []
    for engine in args.engines:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *(sys.executable, str(ROOT / "train_net.py"), "--config-file", args.config_file),
                *(part for name in args.imports for part in ("--import", name)),
                *("--engine", engine, *LONGER, *args.opts, "OUTPUT_DIR", folder),
            ]
            runs[engine] = watch(command, Path(folder), args.interval)
        samples = training_samples(runs[engine])
        rows = windows(samples, warm_up=args.warm_up, window=args.window, count=args.rows)
        table += [{"engine": engine, **row} for row in rows]
        compared += targets(engine, rows[0], rows[-1])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_samples(runs, args.output.with_suffix(".csv"))
    draw_samples(runs, args.output.with_suffix(".png"))
    write("long_run", table, args.output, targets=compared)
    return 0 if all(target.passed for target in compared) else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
