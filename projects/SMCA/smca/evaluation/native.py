"""COCO's average precision, by pycocotools, under the names that Detectron2 gives it."""

from __future__ import annotations

import contextlib
import io
import logging
import os

import numpy as np
from pycocotools.cocoeval import COCOeval

from ..data.coco import CocoDataset
from .ground_truth import distinct, read_truth
from .scoring import Found, score

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RESULTS_FILE = "coco_instances_results.json"


def evaluate(
    rows: np.ndarray,
    dataset: CocoDataset,
    output_dir: str,
    *,
    by_class: bool = True,
) -> dict[str, dict[str, float]]:
    """Score the detections of a whole dataset, and write them as COCO's results.

    Args:
        rows: of :func:`~smca.evaluation.scoring.tabulate`; an image without any may be left out.
        dataset: whose annotation file is the truth.
        output_dir: ``coco_instances_results.json`` is written there.
        by_class: also the AP of each class.

    Returns:
        ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>", ...}}`` in percent;
        nan where there is no object of the kind, or no detection at all. A dataset of one class has
        no "AP-<class>".

    Raises:
        DatasetError: a label beyond the dataset's classes.
    """
    found = Found(rows, dataset.category_ids)
    found.check(dataset.name)
    path = os.path.join(output_dir, RESULTS_FILE)
    found.write(path)
    logger.info("%s: %d detections written to %s", dataset.name, len(rows), path)
    if not len(rows):
        logger.warning("%s: there are no detections to evaluate", dataset.name)
        return {"bbox": dict.fromkeys(_METRICS, float("nan"))}

    scores = score(read_truth(dataset.name, dataset.json_file), found)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        scores.summarize()
    logger.info("%s: evaluation by pycocotools\n%s", dataset.name, log.getvalue().rstrip())
    results = {
        metric: float(value * 100 if value >= 0 else "nan")
        for metric, value in zip(_METRICS, scores.stats, strict=False)
    }
    if by_class and len(dataset.class_names) > 1:
        results |= _class_precision(scores, dataset)
    logger.info("%s: %s", dataset.name, "  ".join(f"{k} {v:.2f}" for k, v in results.items()))
    return {"bbox": results}


def _class_precision(scores: COCOeval, dataset: CocoDataset) -> dict[str, float]:
    """AP of each class: all areas, most detections."""
    results = {}
    for index, name in enumerate(distinct(dataset.class_names)):
        precision = scores.eval["precision"][:, :, index, 0, -1]  # (IoU, recall)
        precision = precision[precision > -1]
        results[f"AP-{name}"] = float(np.mean(precision) * 100) if precision.size else float("nan")
    return results
