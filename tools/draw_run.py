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
from smca.visualization.recording import has_co_attention_maps, record_co_attention


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
    pictures = [output / "detections.png"]
    for number, record in enumerate(records):
        sample = mapper(record)
        image = sample.image if cfg.INPUT.FORMAT == "RGB" else sample.image.flip(0)
        image = image.permute(1, 2, 0).numpy()
        batch, sizes = pad_images([sample.image], mean=mean, std=std)
        with torch.no_grad():
            predictions = detector(batch, sizes)
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
        if number == 0 and has_co_attention_maps(detector):
            pictures.append(output / "co_attention.png")
            draw_queries(
                image,
                *record_co_attention(detector, batch, sizes),
                dataset.class_names,
                count=args.queries,
                softmax=softmax,
                path=pictures[-1],
            )
    save_grid(drawn, pictures[0])
    metrics = Path(cfg.OUTPUT_DIR, "metrics.json")
    if metrics.exists():
        pictures.append(output / "training.png")
        plot_ap(metrics, pictures[-1])
    print(*pictures, sep="\n")


def draw_queries(
    image, predictions, record, class_names, *, count: int, softmax: bool, path: Path
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

    def shown(values: torch.Tensor | None) -> np.ndarray | None:
        return None if values is None else values[0, queries].numpy()

    names = [class_names[label] for label in labels.tolist()]
    draw_co_attention(
        image,
        shown(record.maps),
        shared_centers=shown(record.shared_centers),
        head_centers=shown(record.head_centers),
        covariances=shown(record.covariances),
        boxes=np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1),
        scale_weights=shown(record.selection),
        stride=record.stride,
        titles=[f"{names[query]} {scores[query]:.0%}" for query in queries.tolist()],
        out_png=path,
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
