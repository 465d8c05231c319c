"""COCO's average precision, by pycocotools, under the names that Detectron2 gives it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterable

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert

from ..data.coco import CocoDataset, DatasetError
from ..modeling.heads import Detections

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RESULTS_FILE = "coco_instances_results.json"


def evaluate(
    detections: Iterable[tuple[int, Detections]], dataset: CocoDataset, output_dir: str
) -> dict[str, dict[str, float]]:
    """Score the detections of a whole dataset, and write them as COCO's results.

    Args:
        detections: image id and detections; an image without any may be left out.
        dataset: whose annotation file is the truth.
        output_dir: ``coco_instances_results.json`` is written there.

    Returns:
        ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>", ...}}`` in percent;
        nan where there is no object of the kind, or no detection at all. A dataset of one class has
        no "AP-<class>".

    Raises:
        DatasetError: a label beyond the dataset's classes.
    """
    rows = []
    for image_id, found in detections:
        rows += _result_rows(image_id, found, dataset)
    path = os.path.join(output_dir, RESULTS_FILE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(rows, file)
    logger.info("%s: %d detections written to %s", dataset.name, len(rows), path)
    if not rows:
        logger.warning("%s: there are no detections to evaluate", dataset.name)
        return {"bbox": dict.fromkeys(_METRICS, float("nan"))}

    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        truth = _truth(dataset.json_file)
        scores = COCOeval(truth, truth.loadRes(rows), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    logger.info("%s: evaluation by pycocotools\n%s", dataset.name, log.getvalue().rstrip())
    results = {
        metric: float(value * 100 if value >= 0 else "nan")
        for metric, value in zip(_METRICS, scores.stats, strict=False)
    }
    if len(dataset.class_names) > 1:
        results |= _class_precision(scores, dataset)
    logger.info("%s: %s", dataset.name, "  ".join(f"{k} {v:.2f}" for k, v in results.items()))
    return {"bbox": results}


def _result_rows(image_id: int, found: Detections, dataset: CocoDataset) -> list[dict]:
    classes = len(dataset.category_ids)
    if found.labels.numel() and int(found.labels.max()) >= classes:
        raise DatasetError(
            f"image {image_id} has a detection of class {int(found.labels.max())}, but dataset "
            f"{dataset.name!r} has {classes} classes; MODEL.SMCA.NUM_CLASSES must be {classes}"
        )
    boxes = box_convert(found.boxes.float(), "xyxy", "xywh").tolist()
    return [
        {
            "image_id": image_id,
            "category_id": dataset.category_ids[label],
            "bbox": box,
            "score": score,
        }
        for box, score, label in zip(
            boxes, found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]


def _truth(json_file: str) -> COCO:
    """The annotations, with what pycocotools needs and other programs may leave out."""
    truth = COCO()
    with open(json_file, encoding="utf-8") as file:
        truth.dataset = json.load(file)
    for number, annotation in enumerate(truth.dataset["annotations"], start=1):
        # pycocotools takes a match with annotation 0 for no match.
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    truth.createIndex()
    return truth


def _class_precision(scores: COCOeval, dataset: CocoDataset) -> dict[str, float]:
    """AP of each class: all areas, most detections."""
    results = {}
    for index, name in enumerate(dataset.class_names):
        precision = scores.eval["precision"][:, :, index, 0, -1]  # (IoU, recall)
        precision = precision[precision > -1]
        results[f"AP-{name}"] = float(np.mean(precision) * 100) if precision.size else float("nan")
    return results
