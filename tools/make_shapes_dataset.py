"""Write a COCO-format dataset of drawn shapes: PNG files and annotation files, no download.

Examples:
    python tools/make_shapes_dataset.py --output datasets/shapes --train 4000 --val 400
    python tools/make_shapes_dataset.py --output datasets/crowded --size 512 --classes 20 \
        --max-objects 40 --min-side 12 --max-side 128
"""

import argparse
import sys
from collections.abc import Sequence

from dataset_checks.summary import format_summary, summarise
from smca.data.coco import load_coco
from smca.data.shapes import QUICKSTART, write_shapes_dataset
from smca.data.shapes.drawing import MIN_SIDE, SHAPES
from smca.engine.arguments import Parser
from smca.engine.guard import guarded
from smca.errors import ConfigError


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default="datasets/shapes", help="folder to write")
    parser.add_argument(
        "--train", type=int, default=QUICKSTART["num_train"], help="training images"
    )
    parser.add_argument("--val", type=int, default=QUICKSTART["num_val"], help="validation images")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, default=3, help=f"at most {len(SHAPES)}")
    parser.add_argument("--max-objects", type=int, default=5, help="most objects in an image")
    parser.add_argument(
        "--min-side", type=int, default=MIN_SIDE, help="least side of an object in pixels"
    )
    parser.add_argument(
        "--max-side", type=int, help="greatest side in pixels; 0.85 of the image's where not given"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    try:
        files = write_shapes_dataset(
            args.output,
            num_train=args.train,
            num_val=args.val,
            image_size=args.size,
            num_classes=args.classes,
            max_objects=args.max_objects,
            min_side=args.min_side,
            max_side=args.max_side,
            seed=args.seed,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for split, paths in files.items():
        dataset = load_coco(split, *paths)
        summary = summarise(dataset.records, dataset.class_names)
        print(f"{dataset.json_file}: {format_summary(summary)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
