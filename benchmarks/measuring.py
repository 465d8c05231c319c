"""What all benchmarks share: fair timing, command lines, bars, and a record of what was measured.

Ratios are taken inside one process, between functions that take turns: a machine that is busy for
a while slows down all of them alike. Peak memory is measured by
:func:`smca.analysis.memory.peak_memory`.
"""

from __future__ import annotations

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

# Detectron2 and fvcore decorate with torch.jit, which today's torch announces to remove. Here for
# the processes that measure memory too.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/out"

Row = dict[str, object]


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median of all rounds, and the quartiles around it."""

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
    """Time functions in turns.

    Args:
        functions: by name; each does its work once.
        device: where they work; CUDA is measured by events of the device.
        rounds: measured calls of each function.
        warm_up: calls of each before, at least 1.
        least_seconds: a round repeats a function until it has taken so long, and takes the mean.

    Returns:
        seconds of each round by name, without functions that the device has no memory for.
    """
    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    for name, function in functions.items():
        try:
            seconds = min(_time(function, 1, device) for _ in range(warm_up))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # of what it had made
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
                # Beside what the others keep there is no room for it.
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
    """Reads the time without making a CUDA device wait."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.synchronize(device)

    def now(self) -> float | torch.cuda.Event:
        """A moment, for :meth:`seconds`."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, moments: Sequence[float | torch.cuda.Event]) -> list[float]:
        """From each moment to the next, once all have passed."""
        if self.cuda:
            moments[-1].synchronize()
        pairs = zip(moments[:-1], moments[1:], strict=True)
        return [a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in pairs]


def summary(times: list[float]) -> Timing:
    """Median and quartiles."""
    if len(times) == 1:
        return Timing(*times * 3)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median=median, low=low, high=high)


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float | None:
    """How many times longer ``of`` takes than ``to``: the median over rounds; None without one."""
    if of not in times or to not in times:
        return None
    pairs = zip(times[of], times[to], strict=True)
    return statistics.median(a / b for a, b in pairs)


def quotient(a: float | None, b: float | None) -> float | None:
    """``a / b``; None where either was not measured."""
    return None if a is None or b is None else a / b


@dataclass(frozen=True)
class Bar:
    """A bar, and what was measured against it.

    Attributes:
        name: what is measured.
        value: None where it could not be.
        limit: that the value is to keep.
        at_least: the value is to be so large; else at most so large.
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
        bar = f"at {'least' if self.at_least else 'most'} {self.limit:g}"
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {found} ({bar})"


def add_arguments(parser: argparse.ArgumentParser, name: str, *, rounds: int = 7) -> None:
    """Add the flags that every benchmark has; :func:`chosen_device` acts on them."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=rounds, help="measured calls of each")
    parser.add_argument(
        "--least-seconds", type=float, default=0.1, help="a round repeats what is faster"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUT / f"{name}.json",
        help=f"JSON file (default: benchmarks/out/{name}.json)",
    )


def chosen_device(args: argparse.Namespace) -> torch.device:
    """Where ``--device`` says; from here on torch has ``--threads`` threads."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda":
        # Events are the current device's.
        torch.cuda.set_device(device.index or 0)
    return device


def write(
    name: str,
    rows: Sequence[Row],
    output: Path,
    *,
    bars: Sequence[Bar] = (),
    show: bool = True,
) -> None:
    """Write what was measured, and where, as JSON; and print it as a table.

    Args:
        name: of the benchmark.
        rows: numbers, texts, timings and None by column; those of other columns are another table.
        output: the JSON file.
        bars: printed below.
        show: print it. A program that takes long writes often and shows its rows at the end.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    threads = f"{torch.get_num_threads()} threads"
    used = "cuda" if torch.cuda.is_initialized() else "cpu"
    record = {
        "benchmark": name,
        **describe(command, threads=threads, device=used),
        "rows": list(rows),
        "bars": [asdict(bar) | {"passed": bar.passed} for bar in bars],
    }
    # A program that is stopped while it writes leaves what it had written before.
    part = output.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, default=asdict))
    part.replace(output)
    if show:
        print(table(rows))
        print(*bars, output, sep="\n")


def table(rows: Sequence[Row]) -> str:
    """Rows in aligned columns, a table for each set of columns."""
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
