#!/usr/bin/env python3
"""Fine-tune a small DETR with UP-DETR's pre-training and without it, on drawn shapes.

Both start from the same backbone, as UP-DETR and the DETR it is compared with start from SwAV's. It
is that of a small SMCA, trained here first, since nobody has a backbone for shapes. Pre-training
then reads the images alone, with this backbone frozen. Fine-tuning is the same for both.

Each run starts train_net.py in its own process and folder. The evaluations of a finished run are
added to benchmarks/results/pretraining.csv, and the means of its losses to pretraining_losses.csv.
The same command continues what was stopped. --report-only makes the tables from the results alone.
"""

import argparse
import csv
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convergence import lock, run_program
from convergence_report import origins
from convergence_results import add_results, curves, read_results, read_run
from origin import record_start, starts

from smca.analysis.markdown import markdown_table
from smca.analysis.runs import read_metrics
from smca.checkpoints import read_checkpoint, write_checkpoint
from smca.config import ConfigError
from smca.data.shapes import write_shapes_dataset
from smca.engine.guard import guarded

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
CONFIG = ROOT / "benchmarks/configs/pretraining.yaml"
DOCS = ROOT / "docs/PRETRAINING.md"
TITLES = {"pretrained": "pre-trained", "backbone": "backbone alone"}
LOSSES = ("class", "l1", "giou", "feature")
# A part of the iterations, at the start and at the end, over which losses are averaged.
_PART = 0.05
_EVALUATIONS = 8


@dataclass(frozen=True)
class Stage:
    """A training run.

    Attributes:
        iterations: its length by default.
        options: KEY VALUE pairs.
        start: the stage whose weights it starts from.
    """

    iterations: int
    options: Sequence[str]
    start: str | None = None


_PRETRAINING = [
    *("MODEL.SMCA.DECODER.NAME", "UPDETRDecoder", "MODEL.BACKBONE.FREEZE_AT", "5"),
    *("MODEL.SMCA.NUM_CLASSES", "2", "MODEL.SMCA.LOSS.CLASSIFICATION", "softmax"),
    *("MODEL.SMCA.LOSS.CLASS_WEIGHT", "1.0", "MODEL.SMCA.MATCHER.CLASS_COST", "1.0"),
    *("INPUT.RANDOM_FLIP", "none", "DATASETS.TEST", "()"),
]
STAGES = {
    "smca": Stage(
        1500,
        [
            *("MODEL.SMCA.DECODER.NAME", "SMCADecoder", "MODEL.SMCA.PRE_NORM", "False"),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0", "SEED", "0"),
        ],
    ),
    "pretraining": Stage(6000, _PRETRAINING, "smca"),
    "backbone": Stage(4000, [], "smca"),
    "pretrained": Stage(4000, [], "pretraining"),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=ROOT / "datasets/pretraining")
    parser.add_argument("--output", type=Path, help="default: benchmarks/out/pretraining")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--docs", action="store_true", help="also write the tables into docs/")
    recipe = parser.add_argument_group("changes of the recipe", "They need --output.")
    recipe.add_argument("--iterations", type=int, help="of each run")
    recipe.add_argument("--images", nargs=2, type=int, metavar=("TRAIN", "VAL"))
    recipe.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    args = parser.parse_args(argv)
    if (args.iterations or args.images or args.opts) and not args.output:
        parser.error("--iterations, --images and --opts: name a folder of your own with --output")
    args.results = args.output or RESULTS
    args.output = (args.output or ROOT / "benchmarks/out/pretraining").resolve()
    args.data = args.data.resolve()
    return args


def run_folder(args: argparse.Namespace, name: str, seed: int) -> Path:
    return args.output / name / f"seed{0 if name == 'smca' else seed}"


def command(args: argparse.Namespace, name: str, seed: int) -> list[str]:
    """Return the training program's command line for one run."""
    stage = STAGES[name]
    length = args.iterations or stage.iterations
    period = max(1, length // _EVALUATIONS)
    weights = []
    if stage.start:
        before = run_folder(args, stage.start, seed)
        file = "backbone.pth" if stage.start == "smca" else "model_final.pth"
        weights = ["MODEL.WEIGHTS", str(before / file)]
    files = [
        [f"shapes_{split}", f"{args.data}/annotations/{split}.json", f"{args.data}/{split}"]
        for split in ("train", "val")
    ]
    return [
        *(sys.executable, str(ROOT / "train_net.py"), "--config-file", str(CONFIG), "--resume"),
        *("--engine", "native", "OUTPUT_DIR", str(run_folder(args, name, seed))),
        *("SEED", f"{seed}", "DATASETS.COCO_FORMAT", str(files)),
        *("SOLVER.MAX_ITER", f"{length}", "SOLVER.STEPS", f"({length * 4 // 5},)"),
        *("TEST.EVAL_PERIOD", f"{period}", "SOLVER.CHECKPOINT_PERIOD", f"{period}"),
        *(*weights, *args.opts, *stage.options),
    ]


def train(args: argparse.Namespace) -> int:
    """Train the runs that have not ended and that no other program is at; return an exit code."""
    for seed in args.seeds:
        for name, stage in STAGES.items():
            folder = run_folder(args, name, seed)
            held = lock(folder)
            if held is None:
                print(f"{folder}: another program is at it", flush=True)
                break  # later stages of the seed start from this one
            arguments, done = command(args, name, seed), folder / "done"
            recipe = shlex.join(arguments[arguments.index("SOLVER.MAX_ITER") :])
            if done.exists() and done.read_text() != recipe:
                raise ConfigError(
                    f"{folder} holds a run of another recipe; name another folder with --output, "
                    "or remove this one"
                )
            if not done.exists():
                print(shlex.join(arguments), flush=True)
                record_start(folder)
                if code := run_program(arguments, held):
                    return code if code > 0 else 128 - code
                keep(args, name, seed, args.iterations or stage.iterations)
                done.write_text(recipe)
            os.close(held)
    return 0


def keep(args: argparse.Namespace, name: str, seed: int, iterations: int) -> None:
    """Keep what later runs and the report need of a run that has ended."""
    folder = run_folder(args, name, seed)
    if name == "smca":
        model = read_checkpoint(folder / "model_final.pth")["model"]
        backbone = {key: t for key, t in model.items() if key.startswith("backbone.")}
        write_checkpoint({"model": backbone}, folder / "backbone.pth")
    elif name == "pretraining":
        add_losses(args.results / "pretraining_losses.csv", folder, seed)
    else:
        run = read_run(folder, name, seed, iterations)
        add_results(args.results / "pretraining.csv", run, starts(folder))


def add_losses(path: Path, folder: Path, seed: int) -> None:
    """Add the last layer's mean losses at the start and at the end of a pre-training."""
    series = read_metrics(folder / "metrics.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not file.tell():
            writer.writerow(("seed", "part", *LOSSES))
        values = [series[f"loss_{loss}"][1] for loss in LOSSES]
        count = max(1, round(_PART * len(values[0])))
        for part, place in (("start", slice(count)), ("end", slice(-count, None))):
            means = [f"{statistics.fmean(numbers[place]):.4f}" for numbers in values]
            writer.writerow((seed, part, *means))


def report(args: argparse.Namespace) -> str:
    """Return the tables of the results."""
    path = args.results / "pretraining_losses.csv"
    rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    if not rows:
        return "No run has finished yet.\n"
    lines = []
    for loss in LOSSES:
        cells = []
        for part in ("start", "end"):
            values = [float(row[loss]) for row in rows if row["part"] == part]
            cells.append(_spread(values, 3))
        lines.append([loss, *cells])
    text = f"Pre-training, {len(rows) // 2} seeds:\n\n"
    text += markdown_table(["loss", f"first {_PART:.0%}", f"last {_PART:.0%}"], lines)
    runs = read_results(args.results / "pretraining.csv")
    drawn = curves(runs, TITLES)
    if drawn:
        marks = sorted(set.intersection(*(set(curve.iterations) for curve in drawn.values())))
        lines = [
            [TITLES[name], *(curve.shown(curve.iterations.index(mark)) for mark in marks)]
            for name, curve in drawn.items()
        ]
        text += "\nAP of fine-tuning, mean (range) of the seeds, after so many iterations:\n\n"
        text += markdown_table(["start", *(f"{mark:,}" for mark in marks)], lines)
        text += f"\n{origins(runs)}"
    return text


def _spread(values: Sequence[float], digits: int) -> str:
    mean, low, high = (f"{f(values):.{digits}f}" for f in (statistics.fmean, min, max))
    return f"{mean} ({low}-{high})" if len(values) > 1 else mean


def write_docs(text: str) -> None:
    """Replace the tables of docs/PRETRAINING.md between two marks."""
    begin, end = "<!-- results: begin -->\n", "<!-- results: end -->\n"
    page = DOCS.read_text()
    DOCS.write_text(f"{page.split(begin)[0]}{begin}{text}{end}{page.split(end)[1]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = parse(argv)
    code = 0
    if not args.report_only:
        train_images, val_images = args.images or (4000, 300)
        write_shapes_dataset(
            args.data,
            num_train=train_images,
            num_val=val_images,
            image_size=64,
            num_classes=6,
            min_side=12,
        )
        code = train(args)
    text = report(args)
    print(text)
    if args.docs:
        write_docs(text)
    return code


if __name__ == "__main__":
    sys.exit(guarded(main))
