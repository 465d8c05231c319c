#!/usr/bin/env python3
"""Draw a trained run: its detections, the co-attention of a few queries, and its training curves.

Example:
    python tools/draw_run.py --config-file output/quickstart/config.yaml
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.ops import box_convert

from smca.analysis.runs import History, read_metrics
from smca.config import ConfigError
from smca.data.coco import load_datasets
from smca.engine.arguments import Parser, add_import
from smca.engine.guard import guarded
from smca.inference.inspection import inspect_image
from smca.inference.predictor import Predictor
from smca.visualization.attention.figure import draw_co_attention
from smca.visualization.curves import draw_histories
from smca.visualization.detections import draw_detections, grid


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="the run's config.yaml")
    parser.add_argument("--weights", help="checkpoint (default: the run's last one)")
    parser.add_argument("--output", help="folder (default: OUTPUT_DIR/pictures)")
    parser.add_argument("--images", type=int, default=12, help="images to draw detections on")
    parser.add_argument("--queries", type=int, default=3, help="queries to draw co-attention for")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score drawn")
    add_import(parser)
    args = parser.parse_args(argv)
    if min(args.images, args.queries) < 1:
        parser.error("--images and --queries are at least 1")
    return args


def run(args: argparse.Namespace) -> None:
    predictor = Predictor(args.config_file, args.weights)
    cfg = predictor.cfg
    output = Path(args.output or os.path.join(cfg.OUTPUT_DIR, "pictures"))
    print(predictor.weights, flush=True)
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name the dataset whose images are drawn")
    (dataset, *_) = load_datasets(cfg, cfg.DATASETS.TEST)
    # Take every n-th of the images sorted by their number of objects, the fullest first.
    records = sorted(dataset.records, key=lambda record: -len(record["annotations"]))
    records = records[:: max(1, len(records) // args.images)][: args.images]

    drawn = []
    for record in records:
        image = predictor.read(record["file_name"])
        found = predictor(image)
        drawn.append(
            draw_detections(
                image,
                found.boxes.numpy(),
                found.labels.tolist(),
                found.scores.tolist(),
                predictor.class_names,
                threshold=args.threshold,
                gt_boxes=gt_boxes(record),
            )
        )
    output.mkdir(parents=True, exist_ok=True)
    pictures = [output / "detections.png"]
    grid(drawn).save(pictures[0])
    if predictor.detector.has_attention_maps:
        inspection = inspect_image(predictor, records[0]["file_name"])
        best = inspection.best(args.queries)
        rows = [[(found, *inspection.record.views(found.query))] for found in best]
        pictures.append(output / "co_attention.png")
        draw_co_attention(inspection.image, rows).savefig(pictures[-1])
    metrics = Path(cfg.OUTPUT_DIR, "metrics.json")
    if metrics.exists():
        pictures.append(output / "training.png")
        history = History(metrics.resolve().parent.name, read_metrics(metrics))
        draw_histories([history], ap50=True).savefig(pictures[-1])
    print(*pictures, sep="\n")


def gt_boxes(record: dict) -> torch.Tensor:
    """Return the ground-truth boxes of an image, xyxy in pixels, without crowds."""
    boxes = [entry["bbox"] for entry in record["annotations"] if not entry["iscrowd"]]
    return box_convert(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "xywh", "xyxy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
