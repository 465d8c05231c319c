#!/usr/bin/env python3
"""Draw what a trained run does: detections, the co-attention of a few queries, AP over iterations.

Example:
    python tools/draw_run.py --config-file output/quickstart/config.yaml
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch

from smca import get_cfg
from smca.checkpoints import load
from smca.config import load_cfg
from smca.data.coco import load_datasets
from smca.launching import guarded
from smca.modeling import build_detector, detect
from smca.modeling.detector import pad_images, pixel_statistics
from smca.native.data import NativeMapper
from smca.visualization.attention import draw_co_attention
from smca.visualization.curves import plot_ap
from smca.visualization.detections import draw_detections, save_grid
from smca.visualization.recording import record_co_attention


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="the run's config.yaml")
    parser.add_argument("--weights", help="checkpoint (default: OUTPUT_DIR/model_final.pth)")
    parser.add_argument("--output", help="folder (default: OUTPUT_DIR/pictures)")
    parser.add_argument("--images", type=int, default=12, help="images to draw detections on")
    parser.add_argument("--queries", type=int, default=3, help="queries to draw co-attention of")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score drawn")
    return parser.parse_args()


def main() -> None:
    args = parse()
    cfg = load_cfg(get_cfg(), args.config_file)
    output = Path(args.output or os.path.join(cfg.OUTPUT_DIR, "pictures"))
    detector = build_detector(cfg).eval()
    weights = args.weights or os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    load(detector, weights, whole=True)
    (dataset, *_) = load_datasets(cfg, cfg.DATASETS.TEST)
    # The fullest images tell most.
    records = sorted(dataset.records, key=lambda record: -len(record["annotations"]))
    records = records[:: max(1, len(records) // args.images)][: args.images]
    mapper = NativeMapper.from_config(cfg, is_train=False)
    mean, std = pixel_statistics(cfg)
    softmax = cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"

    drawn = []
    for number, record in enumerate(records):
        sample = mapper(record)
        image = sample.image if cfg.INPUT.FORMAT == "RGB" else sample.image.flip(0)
        image = image.permute(1, 2, 0).numpy()
        batch, sizes = pad_images([sample.image], mean=mean, std=std)
        predictions, record_of = record_co_attention(detector, batch, sizes)
        (found,) = detect(
            predictions,
            sizes,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            softmax=softmax,
        )
        drawn.append(
            draw_detections(
                image,
                found.boxes.numpy(),
                found.labels.tolist(),
                found.scores.tolist(),
                dataset.class_names,
                threshold=args.threshold,
                truth=sample.boxes.numpy(),
            )
        )
        if number == 0:
            draw_queries(
                image,
                predictions,
                record_of,
                dataset.class_names,
                count=args.queries,
                softmax=softmax,
                output=output,
            )
    save_grid(drawn, output / "detections.png")
    print(f"{output / 'detections.png'}\n{output / 'co_attention.png'}")
    metrics = Path(cfg.OUTPUT_DIR, "metrics.json")
    if metrics.exists():
        plot_ap(metrics, output / "training.png")
        print(output / "training.png")


def draw_queries(
    image, predictions, record, class_names, *, count: int, softmax: bool, output: Path
) -> None:
    """The co-attention of the queries with the best scores."""
    logits = predictions.logits[-1, 0]
    scores = logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()
    scores, labels = scores.max(-1)
    queries = scores.topk(min(count, len(scores))).indices
    height, width = image.shape[:2]
    cx, cy, w, h = (
        predictions.boxes[-1, 0, queries] * torch.tensor([width, height, width, height])
    ).unbind(-1)
    selection = record.selection[0, queries]
    names = [class_names[label] for label in labels.tolist()]
    draw_co_attention(
        image,
        record.maps[0, queries].numpy(),
        shared_centers=record.shared_centers[0, queries].numpy(),
        head_centers=record.head_centers[0, queries].numpy(),
        covariances=record.covariances[0, queries].numpy(),
        boxes=np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1),
        scale_weights=selection.numpy() if selection.shape[1] > 1 else None,
        stride=record.stride,
        titles=[f"{names[query]} {scores[query]:.0%}" for query in queries.tolist()],
        out_png=output / "co_attention.png",
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
