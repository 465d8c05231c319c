#!/usr/bin/env python3
"""Draw where queries look in an image: co-attention maps by head, of one model or several.

Examples:
    python tools/visualize_attention.py --config-file output/quickstart/config.yaml \
        --weights output/quickstart/model_final.pth --image datasets/shapes/val/000001.png \
        --detections 3 --layer all
    python tools/visualize_attention.py --image street.jpg --class person --at 420,180 \
        --model independent=smca_single_scale_R50_50ep,independent.pth \
        --model fixed=ablations/table2_fixed,fixed.pth --model DETR=baselines/detr_R50_50ep,detr.pth
"""

import argparse
import sys
from collections.abc import Sequence

from smca.config import ConfigError
from smca.engine.arguments import Parser, add_import
from smca.engine.guard import guarded
from smca.inference.inspection import Inspection, inspect_image
from smca.inference.predictor import Predictor, read_image
from smca.visualization.attention.page import Column, write_co_attention
from smca.visualization.attention.views import Detection


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__.splitlines()[0],
        epilog="Configs are paths of YAML files or names of the model zoo, as smca_R50_50ep.",
    )
    parser.add_argument(
        "--image", type=image_file, required=True, metavar="FILE", help="the image to look at"
    )
    parser.add_argument("--config-file", metavar="CONFIG", help="config of the model")
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint (default: the run's own, or MODEL.WEIGHTS)"
    )
    parser.add_argument(
        "--model",
        type=named_model,
        action="append",
        default=[],
        metavar="NAME=CONFIG,WEIGHTS",
        help="in place of --config-file and --weights, once per model to show side by side",
    )
    parser.add_argument(
        "--layer",
        type=layer,
        default=-1,
        metavar="N|all",
        help="decoder layer, from 0; -1 is the last (default: -1)",
    )
    parser.add_argument(
        "--detections",
        type=count,
        metavar="best|N",
        help="number of detections to show (default: best)",
    )
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="show only this class")
    parser.add_argument("--at", type=point, metavar="X,Y", help="show only boxes around this pixel")
    parser.add_argument(
        "--query", type=int, metavar="INDEX", help="show the detection of this query instead"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.1,
        metavar="SCORE",
        help="least score of the object in the models after the first (default: 0.1)",
    )
    parser.add_argument(
        "--output",
        default="output/attention",
        metavar="FOLDER",
        help="folder for <image>_attention.png and .html (default: output/attention)",
    )
    parser.add_argument(
        "--device", help="cpu, cuda, ... (default: MODEL.DEVICE, or cpu without a GPU)"
    )
    add_import(parser)
    args = parser.parse_args(argv)
    if bool(args.config_file) == bool(args.model):
        parser.error("give --config-file, or --model for each of several models")
    if args.weights and args.model:
        parser.error("--weights goes with --config-file; a --model names its own weights")
    if len({name for name, *_ in args.model}) < len(args.model):
        parser.error("each --model needs a NAME of its own")
    if args.query is not None and (args.at or args.class_name or args.detections):
        parser.error("--query is a choice by itself: give no --detections, --class or --at")
    args.detections = args.detections or 1
    return args


def image_file(path: str) -> str:
    try:
        read_image(path, 16)  # a model may know which grey value is white
    except OSError as error:
        raise argparse.ArgumentTypeError(error) from error
    return path


def named_model(text: str) -> tuple[str, str, str]:
    name, _, files = text.partition("=")
    config, _, weights = files.rpartition(",")
    if not (name and config and weights):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CONFIG,WEIGHTS")
    return name, config, weights


def layer(text: str) -> int | None:
    return None if text == "all" else int(text)


def count(text: str) -> int:
    number = 1 if text == "best" else int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it is at least 1")
    return number


def point(text: str) -> tuple[float, float]:
    x, y = map(float, text.split(","))
    return x, y


def run(args: argparse.Namespace) -> None:
    columns: list[Column] = []
    chosen: Sequence[Detection] = ()
    for name, config, weights in args.model or [("", args.config_file, args.weights)]:
        predictor = Predictor(config, weights, device=args.device)
        print(predictor.weights, flush=True)
        try:
            inspection = inspect_image(predictor, args.image, layer=args.layer)
        except ConfigError as error:
            raise ConfigError(f"{config}: {error}") from error
        if columns:
            shown = [same_object(inspection, found, args.threshold) for found in chosen]
        else:
            shown = chosen = choose(inspection, args)
        objects = [
            found if isinstance(found, str) else (found, inspection.record.views(found.query))
            for found in shown
        ]
        columns.append(Column(name, config, predictor.weights.path, objects))
    print(*write_co_attention(args.output, args.image, inspection.image, columns), sep="\n")


def choose(inspection: Inspection, args: argparse.Namespace) -> Sequence[Detection]:
    """The detections of the first model that the user asks for."""
    if args.query is not None:
        if not 0 <= args.query < len(inspection.boxes):
            raise ConfigError(
                f"--query is {args.query}; the queries are 0 to {len(inspection.boxes) - 1}"
            )
        return [inspection.detection(args.query)]
    names = inspection.class_names
    if args.class_name is not None and args.class_name not in names:
        more = ", ..." if len(names) > 80 else ""
        raise ConfigError(
            f"--class is {args.class_name!r}; the classes are {', '.join(names[:80])}{more}"
        )
    found = inspection.best(args.detections, class_name=args.class_name, point=args.at)
    if not found:
        height, width = inspection.image.shape[:2]
        raise ConfigError(
            f"--at is {args.at[0]:g},{args.at[1]:g}, around which no query has its box; "
            f"the image has {width}x{height} pixels"
        )
    return found


def same_object(inspection: Inspection, found: Detection, threshold: float) -> Detection | str:
    same = inspection.same_object(found, threshold=threshold)
    return same or f"no {found.class_name} here with a score of {threshold:.0%} or more"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
