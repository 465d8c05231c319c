#!/usr/bin/env python3
"""Watch a whole training run: whether its memory stays flat, and what it keeps open.

train_net.py runs in a process of its own, and every --interval seconds /proc tells what that and
its loaders hold. Evaluations and checkpoints are part of the run, but like is compared with like:
a sample is of the iteration that metrics.json has come to, and counts where there are as many
processes as mostly, since an evaluation has loaders of its own. A row of the table is of
--window iterations:
resident: the trainer's memory in MiB, the median of the samples; "total" is that of trainer and
  loaders without what is a file's, such as a library's, and counts once what they share.
files, threads, processes: of trainer and loaders, the least of the samples: what is always there.
shared: files of shared memory, tensors of batches on their way; the median, and the most.
The bars: from the first row, after --warm-up iterations, to the last one memory grows by less than
2 %, there are no more open files, threads and processes, and not more shared files than the first
row's most. All samples are in a CSV file and a picture beside the JSON file.
--opts KEY VALUE ... changes the config.

Examples:
    python benchmarks/long_run.py
    python benchmarks/long_run.py --engines native --warm-up 100 --opts SOLVER.MAX_ITER 400
"""

from __future__ import annotations

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
from importlib.util import find_spec
from pathlib import Path

from footprint import Footprint, footprint
from matplotlib.figure import Figure
from measuring import OUT, ROOT, Bar, Row, write

from smca.engine.guard import guarded
from smca.visualization.curves import finish_axes

ENGINES = ["native", *(["detectron2"] if find_spec("detectron2") else [])]
# Of the quickstart's, which ends earlier.
LONGER = ["SOLVER.MAX_ITER", "2000"]
BAR = 0.02
MEMORY = ("resident", "total")
COUNTS = ("files", "threads", "processes")


@dataclass(frozen=True)
class Sample:
    """What a run holds at a moment.

    Attributes:
        seconds: since its start.
        iteration: how many metrics.json tells of.
    """

    seconds: float
    iteration: int
    held: Footprint


def watch(command: Sequence[str], folder: Path, interval: float) -> list[Sample]:
    """Run a program that trains in ``folder``, and sample it until its end.

    Raises:
        SystemExit: it has failed; what it printed is printed here.
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
    """How many iterations a run has written of."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))  # some lines
        lines = file.read().splitlines()
    # Of the first the beginning may be missing, of the last the end.
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    return json.loads(whole[-1])["iteration"] + 1 if whole else 0


def training_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Those with as many processes as most have since the first iterations."""
    begun = [sample for sample in samples if sample.iteration]
    usual = statistics.mode(sample.held.processes for sample in begun)
    return [sample for sample in begun if sample.held.processes == usual]


def windows(samples: Sequence[Sample], *, warm_up: int, window: int, count: int) -> list[Row]:
    """A row for each of ``count`` windows of iterations, from ``warm_up`` to the end.

    Raises:
        RuntimeError: a window without samples.
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
                **{name: min(held[name]) for name in COUNTS},
                "shared": statistics.median(held["shared"]),
                "most shared": max(held["shared"]),
            }
        )
    return rows


def bars(engine: str, first: Row, last: Row) -> list[Bar]:
    """What has grown from one row to the other: memory relatively, numbers beyond the most."""
    grown = [Bar(f"{engine}: {name}, growth", last[name] / first[name] - 1, BAR) for name in MEMORY]
    more = [Bar(f"{engine}: {name}, more", last[name] - first[name], 0) for name in COUNTS]
    in_flight = last["shared"] - first["most shared"]
    return [*grown, *more, Bar(f"{engine}: shared, more than the most", in_flight, 0)]


def write_samples(runs: dict[str, list[Sample]], path: Path) -> None:
    """All samples as CSV; memory in bytes."""
    names = [field.name for field in fields(Footprint)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["engine", "seconds", "iteration", *names])
        for engine, samples in runs.items():
            for s in samples:
                writer.writerow([engine, f"{s.seconds:.2f}", s.iteration, *asdict(s.held).values()])


def draw_samples(runs: dict[str, list[Sample]], path: Path) -> None:
    """Memory, files and threads of each run over its iterations; evaluations are among them."""
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
    parser.add_argument("--window", type=int, default=100, help="iterations of a row")
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--output", type=Path, default=OUT / "long_run.json", help="JSON file")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="comes last"
    )
    return parser.parse_args()


def main() -> int:
    args = parse()
    runs: dict[str, list[Sample]] = {}
    table: list[Row] = []
    kept: list[Bar] = []
    for engine in args.engines:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *(sys.executable, str(ROOT / "train_net.py"), "--config-file", args.config_file),
                *("--engine", engine, *LONGER, *args.opts, "OUTPUT_DIR", folder),
            ]
            runs[engine] = watch(command, Path(folder), args.interval)
        samples = training_samples(runs[engine])
        rows = windows(samples, warm_up=args.warm_up, window=args.window, count=args.rows)
        table += [{"engine": engine, **row} for row in rows]
        kept += bars(engine, rows[0], rows[-1])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_samples(runs, args.output.with_suffix(".csv"))
    draw_samples(runs, args.output.with_suffix(".png"))
    write("long_run", table, args.output, bars=kept)
    return 0 if all(bar.passed for bar in kept) else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
