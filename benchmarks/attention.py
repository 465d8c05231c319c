#!/usr/bin/env python3
"""Time SMCA's modulated co-attention beside two variants that hold log G as a dense matrix.

"fused" is the project's attention, "dense" is torch's attention with log G as a dense mask, and
"unfused" uses plain operations. Each variant computes log G from centres and scales itself; "dense"
and "unfused" follow Eq. 4 literally. Each runs forward, or forward and backward. Peak memory is
measured in a separate process for each variant. Errors are the largest absolute differences from
float64 in the first image. --scaling measures instead how memory grows with keys and queries.

Examples:
    python benchmarks/attention.py --maps 50x84 --batches 1
    python benchmarks/attention.py --scaling --batches 4
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from co_attention import CHANNELS, HEADS, Case, CoAttention
from measuring import (
    PerformanceTarget,
    Row,
    add_arguments,
    chosen_device,
    interleave,
    quotient,
    ratio,
    summary,
    write,
)
from operations import Operations
from references import ATTENDS
from roofline import HALF, PRECISIONS, Peaks, measured_peaks, precision
from torch import Tensor

from smca.analysis.memory import peak_memory
from smca.engine.guard import guarded
from smca.structures import Size

PASSES = {"forward": False, "forward+backward": True}
# The targets on this map: least unfused / fused time, and most fused / unfused memory.
TARGET_MAP, TARGET_SPEED = "50x84", {"forward": 10.0, "forward+backward": 5.0}
TARGET_MEMORY = 0.25
# The largest exponent with which memory may grow under --scaling.
TARGET_EXPONENT = 1.1
PLAIN = ["fused", "dense", "unfused"]


def prepare(case: Case, name: str, backward: bool) -> Callable[[], Tensor]:
    """Return a fresh process's work: one call of an attention that has run at a small size."""
    CoAttention(replace(case, shape=(4, 4), queries=4, batch=1)).work(name, backward=backward)()
    return CoAttention(case).work(name, backward=backward)


def mebibytes(case: Case, name: str, backward: bool) -> float | None:
    """Return an attention's peak memory in MiB, or None if the memory does not suffice."""
    return quotient(peak_memory(prepare, case, name, backward), 2**20)


def measure(case: Case, args: argparse.Namespace, peaks: Peaks | None) -> list[Row]:
    """Return a row for each pass and attention for which the memory suffices."""
    numbers = CoAttention(case)
    exact = numbers.exact()
    errors = {name: numbers.errors(name, *exact) for name in args.attentions}
    del exact
    rows = []
    for kind, backward in PASSES.items():
        memory = dict.fromkeys(args.attentions)
        works = {n: numbers.work(n, backward=backward) for n in args.attentions}
        if args.memory:
            memory = {name: mebibytes(case, name, backward) for name in works}
            works = {name: work for name, work in works.items() if memory[name] is not None}
        times = interleave(
            works,
            device=torch.device(case.device),
            rounds=args.rounds,
            least_seconds=args.least_seconds,
        )
        for name, seconds in times.items():
            with Operations() as operations:
                works[name]()
            row = {
                "map": "{}x{}".format(*case.shape),
                "batch": case.batch,
                "queries": case.queries,
                "precision": case.precision,
                "pass": kind,
                "attention": name,
                "seconds": summary(seconds),
                "over_fused": ratio(times, name, "fused"),
                "peak_mib": memory[name],
                "of_unfused": quotient(memory[name], memory.get("unfused")),
                **errors[name],
                # 1 means a matrix over all queries, keys and heads.
                "largest_tensor": operations.largest / case.weights,
                "kernels": " ".join(operations.attention) or "plain operations",
            }
            if peaks:
                row |= roofline(case, backward, row["seconds"].median, peaks)
            rows.append(row)
    return rows


def roofline(case: Case, backward: bool, seconds: float, peaks: Peaks) -> Row:
    """Return the columns that relate an attention's necessary work to the device's peaks.

    The forward pass needs two products over queries, keys and channels, the backward pass five. The
    forward pass reads queries, keys and values and writes the output; the backward pass reads these
    and the output's gradient, and writes three gradients.
    """
    flops = (7 if backward else 2) * 2 * case.weights * CHANNELS
    width = 2 if case.precision in HALF else 4
    moved = (6 if backward else 2) * (case.queries + math.prod(case.shape))
    return peaks.reached(flops, moved * case.batch * HEADS * CHANNELS * width, seconds)


def targets(rows: list[Row]) -> list[PerformanceTarget]:
    """Compare the rows of the target map, with 300 queries in fp32, with the targets."""
    found = []
    for row in rows:
        if (row["map"], row["queries"], row["precision"]) != (TARGET_MAP, 300, "fp32"):
            continue
        case = f"{row['map']}, batch {row['batch']}, {row['pass']}"
        if row["attention"] == "unfused" and row["over_fused"]:
            name, limit = f"unfused / fused time, {case}", TARGET_SPEED[row["pass"]]
            found.append(PerformanceTarget(name, row["over_fused"], limit, at_least=True))
        if row["attention"] == "fused" and row["of_unfused"]:
            name = f"fused / unfused memory, {case}"
            found.append(PerformanceTarget(name, row["of_unfused"], TARGET_MEMORY))
    return found


def scaling(case: Case, args: argparse.Namespace) -> tuple[list[Row], list[PerformanceTarget]]:
    """Return peak memory, forward and backward, at four sizes, and the exponents of its growth.

    With keys or with queries alone, an unfused attention grows linearly too; with both it does not.
    """
    rows, exponents, found = [], [], []
    factors = 1, 2, 4, 8
    for vary in ("keys", "queries", "keys and queries"):
        for name in args.attentions:
            print(f"{vary}, {name}", file=sys.stderr, flush=True)
            peaks = []
            for factor in factors:
                (height, width), queries = case.shape, case.queries
                height *= factor if "keys" in vary else 1
                queries *= factor if "queries" in vary else 1
                larger = replace(case, shape=(height, width), queries=queries)
                peaks.append(mebibytes(larger, name, True))
                size = {"batch": case.batch, "keys": height * width, "queries": queries}
                rows.append({"vary": vary, "attention": name, **size, "peak_mib": peaks[-1]})
            exponent = None
            if all(peaks):
                logs = [[math.log(x) for x in series] for series in (factors, peaks)]
                exponent = statistics.linear_regression(*logs).slope
            exponents.append({"vary": vary, "attention": name, "exponent": exponent})
            if name == "fused":
                title = f"growth of fused memory by {vary}"
                found.append(PerformanceTarget(title, exponent, TARGET_EXPONENT))
    return rows + exponents, found


def map_size(text: str) -> Size:
    """Return "ROWSxCOLUMNS" as (rows, columns)."""
    rows, columns = map(int, text.split("x"))
    return rows, columns


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    maps = ("25x34", "50x68", "50x84", "100x134", "100x168")
    parser.add_argument(
        "--maps", nargs="+", type=map_size, default=[*map(map_size, maps)], metavar="ROWSxCOLUMNS"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--attentions", nargs="+", choices=ATTENDS, default=PLAIN)
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="do not measure peak memory"
    )
    parser.add_argument(
        "--roofline",
        action=argparse.BooleanOptionalAction,
        help="report the share of the device's peaks that is reached (default: on CUDA)",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="measure memory at 1, 2, 4 and 8 times the rows of the first map, the queries, and "
        "both, with the first batch and precision",
    )
    add_arguments(parser, "attention")
    return parser.parse_args()


def main() -> int:
    args = parse()
    device = chosen_device(args)
    if args.roofline is None:
        args.roofline = device.type == "cuda"
    cases = [
        Case(shape, batch, args.queries, name, str(device))
        for name in args.precisions
        for shape in args.maps
        for batch in args.batches
    ]
    if args.scaling:
        rows, found = scaling(cases[0], args)
        write("attention", rows, args.output, targets=found)
        return 0
    rows, peaks = [], {}
    for case in cases:
        print(case, file=sys.stderr, flush=True)
        with precision(case.precision) as dtype:
            if args.roofline and case.precision not in peaks:
                peaks[case.precision] = measured_peaks(device, dtype)
            rows += measure(case, args, peaks.get(case.precision))
        write("attention", rows, args.output, targets=targets(rows), show=case is cases[-1])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
