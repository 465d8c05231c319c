#!/usr/bin/env python3
"""Count parameters, multiply-adds and activations of a model's parts, and measure its memory.

Examples:
    python tools/analyze_model.py --config-file configs/smca_R50_50ep.yaml
    python tools/analyze_model.py --config-file configs/smca_R50_50ep.yaml --size 640 640 \
        MODEL.SMCA.NUM_QUERIES 100
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from smca.analysis.counting import ModelCounts, count_model
from smca.analysis.host import NATIVE, Host
from smca.analysis.memory import peak_memory, prepare_pass
from smca.config import is_own_model
from smca.engine.arguments import Parser, add_opts
from smca.engine.guard import guarded
from smca.hosts import choose_engine, load

COLUMNS = ("part", "trainable", "parameters", "multiply-adds", "activations")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__.splitlines()[0],
        epilog="KEY VALUE pairs change the config: MODEL.SMCA.NUM_QUERIES 100",
    )
    parser.add_argument(
        "--config-file", metavar="FILE", required=True, help="a YAML file of configs/"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(800, 1066),
        metavar=("HEIGHT", "WIDTH"),
        help="size of an image in pixels (default: 800 1066)",
    )
    parser.add_argument("--batch", type=int, default=1, help="number of images (default: 1)")
    parser.add_argument("--depth", type=int, default=2, help="levels of parts (default: 2)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--engine",
        choices=("auto", "detectron2", "native"),
        default="auto",
        help="host that builds the model, as in train_net.py",
    )
    add_opts(parser)
    args = parser.parse_args(argv)
    if min(*args.size, args.batch) < 1:
        parser.error("--size and --batch are at least 1")
    return args


def host_of(engine: str) -> Host:
    if choose_engine(engine)[0] == "native":
        return NATIVE
    return load("detectron2", "analysis").DETECTRON2


def run(args: argparse.Namespace) -> None:
    host = host_of(args.engine)
    cfg = host.read(args.config_file, args.opts)
    size = tuple(args.size)
    counts = count_model(host.build(cfg, "cpu"), size=size, batch=args.batch)
    print(f"{args.config_file}: {args.batch} x 3 x {size[0]} x {size[1]}, engine {host.name}\n")
    print_parts(counts, args.depth)
    if args.no_memory:
        return
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    print(f"\nPeak memory beyond the resting model, on {cfg.MODEL.DEVICE}:")
    for name, training in (("evaluation", False), ("forward and backward pass", True)):
        peak = peak_memory(prepare_pass, host, cfg, size, args.batch, training)
        found = "more than there is" if peak is None else f"{peak / 2**30:.2f} GiB"
        print(f"  {name:<27}{found}", flush=True)
    if cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.SMCA.ATTENTION_DROPOUT and is_own_model(cfg):
        print("  (with attention dropout 0: no attention kernel of a CPU is fused with it)")


def print_parts(counts: ModelCounts, depth: int) -> None:
    """Print the parts of a model that have parameters or compute, down to ``depth`` names."""
    rows = [COLUMNS]
    for name, count in counts.parts.items():
        level = name.count(".") + 1 if name else 0
        if level <= depth and (count.parameters or count.multiply_adds):
            rows.append(
                (
                    "  " * level + (name.rpartition(".")[2] or "all"),
                    f"{count.trainable / 1e6:.3f} M",
                    f"{count.parameters / 1e6:.3f} M",
                    f"{count.multiply_adds / 1e9:.3f} G",
                    f"{count.activations / 1e6:.3f} M",
                )
            )
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        "  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, *cells in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    print(*lines, sep="\n")
    kinds = ", ".join(f"{name} {count / 1e9:.3f} G" for name, count in counts.operators.items())
    print(f"\nMultiply-adds: {kinds}")
    if counts.carried:
        print(
            f"Not among them: {counts.carried / 1e9:.3f} G of channels that the fused attention "
            "carries along,\nfor Gaussians and as zeros"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
