"""Tools that all benchmarks share: fair timing, command lines, targets, and result files.

Ratios compare functions that run interleaved in one process, so that other load on the machine
slows all of them down alike. :func:`smca.analysis.memory.peak_memory` measures peak memory.
"""

import argparse
import gc
import json
import os
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from origin import describe

# Detectron2 and fvcore decorate with torch.jit, which today's torch deprecates. The processes that
# measure memory import this module, too.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/out"

Row = dict[str, object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the quartiles of all rounds."""

    median: float
    low: float
    high: float


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    rounds: int = 7,
    warm_up: int = 2,
    least_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Time functions interleaved: in each round, every function runs once.

    Args:
        functions: each performs its work once; keys are names.
        device: where the functions work; CUDA is timed by the device's events.
        rounds: number of measured rounds.
        warm_up: calls of each function before the first round, at least 1.
        least_seconds: a round repeats a function for about this time and takes the mean.

    Returns:
        seconds of each round by name, without the functions that exceed the device's memory.
    """
    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    for name, function in functions.items():
        try:
            seconds = min(_time(function, 1, device) for _ in range(warm_up))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # free the tensors of the failed call
            continue
        repeats[name] = max(1, round(least_seconds / max(seconds, 1e-9)))
        times[name] = []
    for _ in range(rounds):
        for name in list(times):
            gc.collect()
            gc.disable()
            try:
                times[name].append(_time(functions[name], repeats[name], device))
            except torch.OutOfMemoryError:
                # The memory that the other functions keep leaves too little for this one.
                del times[name]
                torch.cuda.empty_cache()
            finally:
                gc.enable()
    return times


def _time(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    clock = Clock(device)
    begin = clock.now()
    for _ in range(repeats):
        function()
    return clock.seconds([begin, clock.now()])[0] / repeats


class Clock:
    """Read the time without making the host wait for a CUDA device."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.synchronize(device)

    def now(self) -> float | torch.cuda.Event:
        """Return the present moment, for :meth:`seconds`."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, moments: Sequence[float | torch.cuda.Event]) -> list[float]:
        """Wait for the last moment, and return the seconds from each moment to the next."""
        if self.cuda:
            moments[-1].synchronize()
        pairs = zip(moments[:-1], moments[1:], strict=True)
        return [a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in pairs]


def summary(times: list[float]) -> Timing:
    """Return median and quartiles."""
    if len(times) == 1:
        return Timing(*times * 3)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median=median, low=low, high=high)


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float | None:
    """Return the median over rounds of ``of``'s time divided by ``to``'s.

    The result is None if either was not timed.
    """
    if of not in times or to not in times:
        return None
    pairs = zip(times[of], times[to], strict=True)
    return statistics.median(a / b for a, b in pairs)


def quotient(a: float | None, b: float | None) -> float | None:
    """Return ``a / b``, or None if either was not measured."""
    return None if a is None or b is None else a / b


@dataclass(frozen=True)
class PerformanceTarget:
    """A measured value and the limit that it should keep.

    Attributes:
        name: the measured quantity.
        value: the measured value, or None if it was not measured.
        limit: the least or largest value that passes.
        at_least: whether ``limit`` is the least value that passes; otherwise it is the largest.
    """

    name: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        found = "not measured" if self.value is None else f"{self.value:.3g}"
        limit = f"at {'least' if self.at_least else 'most'} {self.limit:g}"
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {found} ({limit})"


def add_arguments(parser: argparse.ArgumentParser, name: str, *, rounds: int = 7) -> None:
    """Add the flags that all benchmarks share; :func:`chosen_device` applies some of them."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=rounds, help="number of measured rounds")
    parser.add_argument(
        "--least-seconds",
        type=float,
        default=0.1,
        help="a round repeats a faster function for about this time",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUT / f"{name}.json",
        help=f"JSON file (default: benchmarks/out/{name}.json)",
    )


def chosen_device(args: argparse.Namespace) -> torch.device:
    """Set the process up for timings, and return the device of ``--device``."""
    # Otherwise each garbage collection would traverse all imported modules.
    gc.freeze()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda":
        # Events record on the current device.
        torch.cuda.set_device(device.index or 0)
    return device


def write(
    name: str,
    rows: Sequence[Row],
    output: Path,
    *,
    targets: Sequence[PerformanceTarget] = (),
    show: bool = True,
) -> None:
    """Write the measurements and their origin as JSON, and print them as tables.

    Args:
        name: the benchmark's file name without its suffix.
        rows: numbers, texts, timings and None by column; rows with equal columns share a table.
        output: the JSON file.
        targets: printed below the tables.
        show: whether to print; a long program writes often and prints its rows at the end.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    threads = f"{torch.get_num_threads()} threads"
    used = "cuda" if torch.cuda.is_initialized() else "cpu"
    record = {
        "benchmark": name,
        **describe(command, threads=threads, device=used),
        "rows": list(rows),
        # The files of all versions call the targets bars.
        "bars": [asdict(target) | {"passed": target.passed} for target in targets],
    }
    # A program that stops while it writes leaves the previous file intact.
    part = output.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, default=asdict))
    part.replace(output)
    if show:
        print(table(rows))
        print(*targets, output, sep="\n")


def table(rows: Sequence[Row]) -> str:
    """Return the rows in aligned columns, with a table for each set of columns."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    tables = []
    for columns, group in groups.items():
        lines = [columns, *([_cell(value) for value in row.values()] for row in group)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )
        tables.append("".join(f"{line}\n" for line in aligned))
    return "\n".join(tables)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Timing):
        return f"{value.median:.4g} ({value.low:.4g}-{value.high:.4g})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
