#!/usr/bin/env python3
"""Time inference and training steps of whole detectors, with fused and with other attention.

A training step includes forward pass, matcher, loss, backward pass, clipping and update. The
variants of attention run interleaved in one process, as do the same model with DETR's decoder, in
inference, and SMCA's single-scale and full models with groups of queries (--groups), with the first
variant of attention. Peak memory is measured in a separate process for each of them and excludes
the idle model; in training it covers two steps and so includes gradients and optimizer states.
Shares of time are measured for the first variant. --attention-dropout sets the attention dropout.
It defaults to the config's on CUDA, and to 0 on a CPU, whose fused kernels have no dropout.
"unfused, dropout" always trains with the recipe's dropout, like the public implementations. KEY
VALUE pairs after --opts change all configs.

Example:
    python benchmarks/model.py --configs smca_single_scale_R50_50ep smca_R50_50ep --rounds 5
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from measuring import (
    ROOT,
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
from references import ATTENDS, UNFUSED_RECIPE, attention_replaced
from roofline import PRECISIONS, Peaks, measured_peaks, precision
from workload import Setting, Workload

from smca.analysis.host import NATIVE
from smca.analysis.memory import peak_memory
from smca.config import is_tsp
from smca.engine.arguments import add_import
from smca.engine.guard import guarded

# One config of each model with SMCA's decoder, then the baselines.
FAMILIES = (
    "smca_single_scale_R50_50ep",
    "smca_R50_50ep",
    "smca_R101_50ep",
    "smca_depthwise_R50_50ep",
    "smca_depthwise_R101_50ep",
    *(f"ablations/table2_{name}" for name in ("fixed", "head_shared_b8", "single")),
    *(f"ablations/table3_{name}" for name in ("3intra", "3multi", "5intra")),
    *(f"ablations/table3_{name}" for name in ("no_scale_selection", "no_sharing")),
    *(f"ablations/table3_{name}" for name in ("shared_attention", "shared_ffn")),
    "baselines/detr_focal_R50_50ep",
    "baselines/conditional_detr_R50_50ep",
)
# A config and a variant of attention for each name of a row.
Runs = Mapping[str, tuple[CfgNode, str]]
WORKS = {"inference": Workload.infer, "training": Workload.train}
# The largest time and memory of a training step, relative to unfused attention with dropout.
TARGETS = {"single scale": (0.88, 0.7), "multi scale": (0.45, 0.3)}
# The largest time of a training step with five groups of queries, relative to one group.
TARGETS_GROUPS = {"single scale": 1.3, "multi scale": 1.4}
# The largest time of an inference, relative to DETR's decoder, and of five groups relative to one.
TARGET_DETR = TARGET_GROUPS_INFERENCE = 1.03
# The largest share of matcher and losses in a training step on a CPU.
TARGET_CRITERION = 0.03


def kind(cfg: CfgNode) -> str | None:
    """Return the key of ``TARGETS`` that applies to a config, or None."""
    smca = cfg.MODEL.SMCA
    if smca.DECODER.NAME != "SMCADecoder" or smca.ENCODER.NAME != "IntraMultiEncoder":
        return None
    if smca.NUM_SCALES == 1:
        return "single scale"
    return "multi scale" if "multi" in smca.ENCODER.BLOCKS else None


def changed(cfg: CfgNode, key: str, value: object) -> CfgNode:
    """Return a copy of a config with another value."""
    copy = cfg.clone()
    copy.merge_from_list([key, value])
    return copy


def attending(variant: str, function: Callable[[], object]) -> Callable[[], object]:
    """Return ``function`` with all attention replaced by a variant."""

    def run() -> object:
        with attention_replaced(variant):
            return function()

    return run


def prepare(cfg: CfgNode, setting: Setting, variant: str, work: str) -> Callable[[], object]:
    """Return a fresh process's work: an inference or two steps, of a model that has run before."""
    workload = Workload(cfg, setting)
    once = attending(variant, partial(WORKS[work], workload))
    workload.see((64, 64), 1)
    attending(variant, workload.infer)()
    workload.see(setting.size, setting.batch)
    return once if work == "inference" else lambda: (once(), once())


def peaks_of_memory(
    runs: Runs, setting: Setting, work: str, args: argparse.Namespace
) -> dict[str, int | None]:
    """Return each run's peak memory in bytes, without the runs that exceed the memory.

    With --no-memory all values are None.
    """
    # Nothing drops attention weights in inference.
    runs = {n: run for n, run in runs.items() if work == "training" or n != UNFUSED_RECIPE}
    if not args.memory:
        return dict.fromkeys(runs)
    found = {n: peak_memory(prepare, cfg, setting, v, work) for n, (cfg, v) in runs.items()}
    return {name: peak for name, peak in found.items() if peak is not None}


def speeds(
    name: str, workload: Workload, args: argparse.Namespace, peaks: Peaks | None
) -> list[Row]:
    """Return a row for each kind of work and variant of attention, or number of groups."""
    cfg, setting = workload.cfg, workload.setting
    rows = []
    demanded = workload.demands() if peaks else {}
    first = args.variants[0]
    grouped = {
        f"{first}, {number} groups": (changed(cfg, "MODEL.SMCA.QUERY_GROUPS", number), first)
        for number in args.groups
        if kind(cfg) and cfg.MODEL.SMCA.QUERY_GROUPS == 1
    }
    runs = {variant: (cfg, variant) for variant in args.variants} | grouped
    warm_up = 3 if workload.device.type == "cuda" else 1
    for work, function in WORKS.items():
        memory = peaks_of_memory(runs, setting, work, args)
        functions = {}
        for run in memory:
            its, variant = runs[run]
            loaded = workload if its is cfg else Workload(its, setting)
            functions[run] = attending(variant, partial(function, loaded))
        if work == "inference" and cfg.MODEL.SMCA.DECODER.NAME != "DETRDecoder" and not is_tsp(cfg):
            detr = changed(cfg, "MODEL.SMCA.DECODER.NAME", "DETRDecoder")
            functions["DETR"] = Workload(detr, setting).infer
        times = interleave(functions, device=workload.device, rounds=args.rounds, warm_up=warm_up)
        for variant, seconds in times.items():
            timing, peak, one = summary(seconds), memory.get(variant), memory.get(first)
            row = {
                "config": name,
                "work": work,
                "attention": variant,
                "seconds": timing,
                "images_per_s": setting.batch / timing.median,
                "of_unfused": ratio(times, variant, "unfused"),
                "of_recipe": ratio(times, variant, UNFUSED_RECIPE),
                "of_DETR": ratio(times, variant, "DETR"),
                "of_one_group": ratio(times, variant, first) if variant in grouped else None,
                "peak_mib": quotient(peak, 2**20),
                "peak_of_unfused": quotient(peak, memory.get("unfused")),
                "peak_of_recipe": quotient(peak, memory.get(UNFUSED_RECIPE)),
                "peak_of_one_group": quotient(peak if variant in grouped else None, one),
            }
            if peaks:
                reached = peaks.reached(*demanded[work], timing.median)
                row |= dict.fromkeys(reached) if variant in grouped else reached
            rows.append(row)
    return rows


def shares(name: str, workload: Workload, variant: str, works: list[str], runs: int) -> list[Row]:
    """Return each part's share of the time of ``works``, and the attention kernels that ran."""
    rows = []
    for work in works:
        function = WORKS[work]
        once = attending(variant, partial(function, workload))
        seconds = [workload.stages(once) for _ in range(runs)]
        total = statistics.median(sum(run.values()) for run in seconds)
        row = {"config": name, "work": work, "attention": variant}
        for stage in seconds[0]:
            row[stage] = statistics.median(run[stage] for run in seconds) / total
        with Operations() as operations:
            once()
        row["kernels"] = " ".join(operations.attention) or "plain operations"
        rows.append(row)
    return rows


def targets(cfg: CfgNode, rows: list[Row], device: torch.device) -> list[PerformanceTarget]:
    """Compare a config's rows with the targets that apply to it."""
    found = []
    limits = TARGETS.get(kind(cfg))
    for row in rows:
        training = row["work"] == "training"
        measured = {}
        if row["attention"] == "fused, 5 groups":
            limit = TARGETS_GROUPS[kind(cfg)] if training else TARGET_GROUPS_INFERENCE
            measured["time of five groups, of one"] = row["of_one_group"], limit
        elif row["attention"] != "fused":
            continue
        elif "matcher" in row and device.type == "cpu":
            share = row["matcher"] + row["loss"]
            measured["matcher and loss, of the time"] = share, TARGET_CRITERION
        elif "seconds" in row and limits and training:
            measured["time, of the recipe's unfused"] = row["of_recipe"], limits[0]
            measured["memory, of the recipe's unfused"] = row["peak_of_recipe"], limits[1]
        elif "seconds" in row and kind(cfg) == "single scale":
            measured["time, of DETR"] = row["of_DETR"], TARGET_DETR
        for quantity, (value, limit) in measured.items():
            if value is not None:
                name = f"{row['config']}, {row['work']}: {quantity}"
                found.append(PerformanceTarget(name, value, limit))
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=FAMILIES, help="config names or files")
    add_setting(parser)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=ATTENDS,
        default=["fused", "unfused", UNFUSED_RECIPE],
        help="variants of attention",
    )
    parser.add_argument(
        "--groups", nargs="*", type=int, default=[5], help="numbers of groups of queries"
    )
    parser.add_argument(
        "--roofline",
        action=argparse.BooleanOptionalAction,
        help="report the share of the device's peaks that is reached (default: on CUDA)",
    )
    add_import(parser)
    add_arguments(parser, "model", rounds=5)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="comes last"
    )
    return parser.parse_args()


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add the flags for a detector's input and precision, and for measuring its memory."""
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1066), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="precision of products"
    )
    parser.add_argument("--attention-dropout", type=float)
    parser.add_argument("--no-memory", dest="memory", action="store_false")


def read(name: str, args: argparse.Namespace) -> CfgNode:
    """Return a config by its name or file, with the changes of the command line."""
    file = Path(name) if name.endswith(".yaml") else ROOT / f"configs/{name}.yaml"
    dropout = args.attention_dropout
    if dropout is None and args.device == "cpu":
        dropout = 0.0
    chosen = [] if dropout is None else ["MODEL.SMCA.ATTENTION_DROPOUT", dropout]
    return NATIVE.read(str(file), [*chosen, *args.opts])


def main() -> int:
    args = parse()
    device = chosen_device(args)
    setting = Setting(tuple(args.size), args.batch, args.precision, str(device))
    peaks = None
    if args.roofline or (args.roofline is None and device.type == "cuda"):
        with precision(args.precision) as dtype:
            peaks = measured_peaks(device, dtype)
    rows, compared = [], []
    for name in args.configs:
        print(name, file=sys.stderr, flush=True)
        cfg = read(name, args)
        workload = Workload(cfg, setting)
        found = speeds(name, workload, args, peaks)
        # The first variant may exceed the memory in some kinds of work.
        works = [row["work"] for row in found if row["attention"] == args.variants[0]]
        found += shares(name, workload, args.variants[0], works, min(3, args.rounds))
        rows += found
        compared += targets(cfg, found, device)
        write("model", rows, args.output, targets=compared, show=name == args.configs[-1])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
