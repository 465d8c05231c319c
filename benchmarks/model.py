#!/usr/bin/env python3
"""Time inference and training steps of whole detectors, with fused and with other attention.

A step is forward, matcher, loss, backward, clipping and update. The variants of attention take
turns in one process, and so does the same model with DETR's decoder in inference. Peak memory is
that of a process each above its resting model: of two steps, so that gradients and optimizer
count too. Shares of time are of the first variant. Attention dropout is 0 on a CPU, where no
kernel is fused with it, and the config's on CUDA; on both it can be chosen. "unfused, dropout" has
the recipe's in training whatever the others have, as the public implementations. KEY VALUE pairs
after the flags change all configs.

Example:
    python benchmarks/model.py --configs smca_single_scale_R50_50ep smca_R50_50ep --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from measuring import (
    ROOT,
    Bar,
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

from smca.analysis.counting import count_model
from smca.analysis.host import NATIVE, detector_subject
from smca.analysis.memory import peak_memory
from smca.engine.guard import guarded

# A config of each model with SMCA's decoder, then the others of the table.
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
WORKS = {"inference": Workload.infer, "training": Workload.train}
# At most: time and memory of a step, of the same model's with unfused attention and its dropout.
BARS = {"single scale": (0.88, 0.7), "multi scale": (0.45, 0.3)}
BAR_DETR = 1.03
BAR_CRITERION = 0.03


def kind(cfg: CfgNode) -> str | None:
    """Which of ``BARS`` a config has to keep, if any."""
    smca = cfg.MODEL.SMCA
    if smca.DECODER.NAME != "SMCADecoder" or smca.ENCODER.NAME != "IntraMultiEncoder":
        return None
    if smca.NUM_SCALES == 1:
        return "single scale"
    return "multi scale" if "multi" in smca.ENCODER.BLOCKS else None


def attending(variant: str, function: Callable[[], object]) -> Callable[[], object]:
    """``function`` with all attention of a variant."""

    def run() -> object:
        with attention_replaced(variant):
            return function()

    return run


def prepare(cfg: CfgNode, setting: Setting, variant: str, work: str) -> Callable[[], object]:
    """A fresh process's work: an inference, or two steps, of a model that has seen an image."""
    workload = Workload(cfg, setting)
    once = attending(variant, partial(WORKS[work], workload))
    workload.see((64, 64), 1)
    attending(variant, workload.infer)()
    workload.see(setting.size, setting.batch)
    return once if work == "inference" else lambda: (once(), once())


def peaks_of_memory(
    cfg: CfgNode, setting: Setting, work: str, args: argparse.Namespace
) -> dict[str, int | None]:
    """Bytes of each variant; those that memory does not suffice for are missing."""
    # Nothing drops attention weights in inference.
    variants = [v for v in args.variants if work == "training" or v != UNFUSED_RECIPE]
    if not args.memory:
        return dict.fromkeys(variants)
    found = {v: peak_memory(prepare, cfg, setting, v, work) for v in variants}
    return {variant: peak for variant, peak in found.items() if peak is not None}


def speeds(
    name: str, workload: Workload, args: argparse.Namespace, peaks: Peaks | None
) -> list[Row]:
    """A row a kind of work and variant."""
    cfg, setting = workload.cfg, workload.setting
    rows = []
    demanded = demands(workload) if peaks else {}
    warm_up = 3 if workload.device.type == "cuda" else 1
    for work, function in WORKS.items():
        memory = peaks_of_memory(cfg, setting, work, args)
        functions = {v: attending(v, partial(function, workload)) for v in memory}
        if work == "inference" and cfg.MODEL.SMCA.DECODER.NAME != "DETRDecoder":
            detr = cfg.clone()
            detr.merge_from_list(["MODEL.SMCA.DECODER.NAME", "DETRDecoder"])
            functions["DETR"] = Workload(detr, setting).infer
        times = interleave(functions, device=workload.device, rounds=args.rounds, warm_up=warm_up)
        for variant, seconds in times.items():
            timing, peak = summary(seconds), memory.get(variant)
            row = {
                "config": name,
                "work": work,
                "attention": variant,
                "seconds": timing,
                "images_per_s": setting.batch / timing.median,
                "of_unfused": ratio(times, variant, "unfused"),
                "of_recipe": ratio(times, variant, UNFUSED_RECIPE),
                "of_DETR": ratio(times, variant, "DETR"),
                "peak_mib": quotient(peak, 2**20),
                "peak_of_unfused": quotient(peak, memory.get("unfused")),
                "peak_of_recipe": quotient(peak, memory.get(UNFUSED_RECIPE)),
            }
            if peaks:
                row |= peaks.reached(*demanded[work], timing.median)
            rows.append(row)
    return rows


def shares(name: str, workload: Workload, variant: str, works: list[str], runs: int) -> list[Row]:
    """How the time of ``works`` divides, and which attention kernels they run on."""
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


def demands(workload: Workload) -> dict[str, tuple[float, float]]:
    """The least operations and bytes of each kind of work.

    Backward computes and moves twice what forward does, but not in the backbone's frozen stages.
    What convolutions and matrix products make is written and read once.
    """
    setting = workload.setting
    subject = detector_subject(workload.detector, workload.cfg)
    parts = count_model(subject, size=setting.size, batch=setting.batch).parts
    whole, width = parts[""], 2 if setting.half else 4
    stages = [f"backbone.{name}" for name, _ in workload.detector.backbone.named_children()]
    frozen = sum(parts[name].multiply_adds for name in stages if not parts[name].trainable)
    forward = 2 * whole.multiply_adds, 4 * whole.parameters + 2 * width * whole.activations
    return {"inference": forward, "training": (3 * forward[0] - 4 * frozen, 3 * forward[1])}


def bars(cfg: CfgNode, rows: list[Row], device: torch.device) -> list[Bar]:
    """Those that a config's rows have to keep."""
    found = []
    limits = BARS.get(kind(cfg))
    for row in rows:
        if row["attention"] != "fused":
            continue
        measured = {}
        if "matcher" in row and device.type == "cpu":
            measured["matcher and loss, of the time"] = row["matcher"] + row["loss"], BAR_CRITERION
        if "seconds" in row and limits and row["work"] == "training":
            measured["time, of the recipe's unfused"] = row["of_recipe"], limits[0]
            measured["memory, of the recipe's unfused"] = row["peak_of_recipe"], limits[1]
        if "seconds" in row and kind(cfg) == "single scale" and row["work"] == "inference":
            measured["time, of DETR"] = row["of_DETR"], BAR_DETR
        for what, (value, limit) in measured.items():
            if value is not None:
                found.append(Bar(f"{row['config']}, {row['work']}: {what}", value, limit))
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=FAMILIES, help="names or files")
    add_setting(parser)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=ATTENDS,
        default=["fused", "unfused", UNFUSED_RECIPE],
        help="of attention",
    )
    parser.add_argument(
        "--roofline",
        action=argparse.BooleanOptionalAction,
        help="what is reached of the device's peaks (default: on CUDA)",
    )
    add_arguments(parser, "model", rounds=5)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="comes last"
    )
    return parser.parse_args()


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a detector works on, and whether its memory is measured."""
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1066), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of autocast")
    parser.add_argument("--attention-dropout", type=float)
    parser.add_argument("--no-memory", dest="memory", action="store_false")


def read(name: str, args: argparse.Namespace) -> CfgNode:
    """A config by its name or file, with the changes of the command line."""
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
    rows, limits = [], []
    for name in args.configs:
        print(name, file=sys.stderr, flush=True)
        cfg = read(name, args)
        workload = Workload(cfg, setting)
        found = speeds(name, workload, args, peaks)
        # Those that there is memory for.
        works = [row["work"] for row in found if row["attention"] == args.variants[0]]
        found += shares(name, workload, args.variants[0], works, min(3, args.rounds))
        rows += found
        limits += bars(cfg, found, device)
        write("model", rows, args.output, bars=limits, show=name == args.configs[-1])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
