#!/usr/bin/env python3
"""Compare runs: AP and loss over epochs as a picture, and their numbers as a table.

Folders without a metrics.json are passed over. --authors draws the training curves that SMCA's
authors published beside them. They can be compared only with runs on COCO.

Examples:
    python tools/plot_training.py output/quickstart --output training.png
    python tools/plot_training.py output/* --authors depthwise_R50 --output training.png \\
        --markdown training.md
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smca.analysis.markdown import markdown_table
from smca.analysis.runs import History, common_axis, in_words, read_metrics
from smca.config import ConfigError, read_config_file
from smca.engine.arguments import Parser
from smca.engine.guard import guarded
from smca.evaluation.evaluate import AP_NAMES
from smca.visualization.curves import draw_histories

PUBLISHED = Path(__file__).with_name("authors_ap_by_epoch.json")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = list(published_runs())
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="OUTPUT_DIR of a run")
    parser.add_argument(
        "--output", metavar="FILE", required=True, help="picture: .png, .pdf or .svg"
    )
    parser.add_argument("--markdown", metavar="FILE", help="table of the runs to write")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--authors",
        nargs="+",
        choices=[*names, "all", "none"],
        default=["none"],
        metavar="NAME",
        help=f"published runs to draw, too: {', '.join(names)}, all or none (default: none)",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="number of training images, for runs whose metrics.json has no epochs",
    )
    parser.add_argument("--ap50", action="store_true", help="draw AP50 too")
    parser.add_argument(
        "--smooth",
        type=float,
        default=2.0,
        metavar="PERCENT",
        help="part of a run over which losses are averaged; 0: none (default: 2)",
    )
    parser.add_argument(
        "--more", action="store_true", help="draw time spent waiting for data and gradient norms"
    )
    args = parser.parse_args(argv)
    if "all" in args.authors:
        args.authors = names
    args.authors = [name for name in args.authors if name != "none"]
    if args.images is not None and args.images < 1:
        parser.error("--images is at least 1")
    if not 0 <= args.smooth <= 100:
        parser.error("--smooth is a percentage")
    for file in filter(None, (args.output, args.markdown)):
        if Path(file).is_dir() or not Path(file).parent.is_dir():
            parser.error(f"{file} cannot be written: give a file in a folder that exists")
        if Path(file).exists() and not args.overwrite:
            parser.error(f"{file} exists; give --overwrite to replace it")
    return args


def run(args: argparse.Namespace) -> None:
    folders = [run for run in args.runs if Path(run, "metrics.json").is_file()]
    for run in args.runs:
        if run not in folders:
            print(f"{run} has no metrics.json and is passed over", file=sys.stderr)
    if not folders and not args.authors:
        raise FileNotFoundError("there is no run to draw: name a folder with a metrics.json")
    try:
        histories = read_runs(folders, args.images)
        histories += [published_runs()[name] for name in args.authors]
        table = runs_table(histories)
        figure = draw_histories(histories, ap50=args.ap50, smooth=args.smooth, more=args.more)
        figure.savefig(args.output)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(args.output)
    if args.markdown:
        Path(args.markdown).write_text(table, encoding="utf-8")
        print(args.markdown)


def read_runs(folders: Sequence[str | os.PathLike], images: int | None = None) -> list[History]:
    """Read the runs in ``folders``. Their paths below a common folder are their names.

    Args:
        folders: folders with `metrics.json` and `config.yaml`.
        images: number of training images, for runs whose metrics have no epochs.

    Raises:
        FileNotFoundError: there is no `metrics.json`.
        ValueError: a file cannot be read, or lacks the batch that epochs are counted by.
    """
    paths = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [read_run(Path(path), os.path.relpath(path, root), images) for path in paths]


def read_run(folder: Path, name: str, images: int | None) -> History:
    metrics = read_metrics(folder / "metrics.json")
    config_file = folder / "config.yaml"
    # The config may be of another version of the code.
    config = read_config_file(config_file) if config_file.exists() else {}
    # The first of several datasets counts, as it does for `model_best.pth`.
    tests = config.get("DATASETS.TEST")
    first = tests[0] if isinstance(tests, list) and tests else None
    metrics = {key.removeprefix(f"{first}/"): series for key, series in metrics.items()}
    epochs = None
    if images and metrics and "epoch" not in metrics:
        batch = config.get("SOLVER.IMS_PER_BATCH")
        if not isinstance(batch, int) or batch < 1:
            raise ValueError(f"{config_file} does not tell SOLVER.IMS_PER_BATCH")
        epochs = batch / images
    same_loss = all(config.get(key) == value for key, value in published()["config"].items())
    return History(name, metrics, epochs_per_iteration=epochs, same_loss=same_loss)


def published() -> dict:
    """Read the training curves that SMCA's authors published, and the config of their loss."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def published_runs() -> dict[str, History]:
    """The runs whose AP and loss by epoch SMCA's authors published, an iteration for each epoch."""
    return {
        name: History(
            f"SMCA's authors, {name} (COCO val2017)",
            {
                "bbox/AP": (list(range(len(run["AP"]))), run["AP"]),
                "total_loss": (list(range(len(run["AP"]))), run["train_loss"]),
            },
            epochs_per_iteration=1.0,
            published=True,
            same_loss=True,
        )
        for name, run in published()["runs"].items()
    }


def runs_table(histories: Sequence[History]) -> str:
    """Return a Markdown table of each run's length, last AP, best AP and speed, as far as known."""
    over = common_axis(histories)
    head = ["run", "iterations", "epochs", *AP_NAMES, "best AP", f"at {over}", "s an iteration"]
    return markdown_table(head, [row(history, over) for history in histories])


def row(history: History, over: str) -> list[str]:
    """Return the cells of a run."""
    places, values = history.curve("bbox/AP", over)
    _, seconds = history.curve("time", over)
    last = [history.curve(f"bbox/{name}", over)[1][-1:] for name in AP_NAMES]
    return [
        history.name,
        "" if history.published else f"{history.iterations:,}",
        in_words(history.place(history.iterations, over)) if over == "epoch" else "",
        *(f"{ap[0]:.1f}" if len(ap) else "" for ap in last),
        f"{values.max():.1f}" if len(values) else "",
        in_words(places[values.argmax()]) if len(values) else "",
        f"{np.median(seconds):.3f}" if len(seconds) else "",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
