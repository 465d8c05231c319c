"""COCO's average precision by faster-coco-eval, one class at a time.

The numbers of a class need no other class, and a class at a time needs a fraction of the memory.
"""

import logging

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval import COCOeval_faster as COCOeval

from .detections import coco_results

logger = logging.getLogger(__name__)

# The first of COCO's numbers, in COCO's order and under Detectron2's names.
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CLASS_PREFIX = "AP-"  # before the name of a class


def average_precision(rows: np.ndarray, ground_truth: COCO) -> tuple[dict[str, float], list[float]]:
    """Return the numbers of ``AP_NAMES`` and the AP of each class, in percent; nan where there is
    no object.

    Args:
        rows: at least one detection, see :func:`~smca.evaluation.detections.tabulate`.
        ground_truth: see :func:`~smca.evaluation.ground_truth.read_ground_truth`.
    """
    scores = score_classes(rows, ground_truth)
    # (IoU, recall, class) of all areas and the largest number of detections.
    precision = scores.eval["precision"][..., 0, -1]
    by_class = [part[part > -1] for part in precision.transpose(2, 0, 1)]
    return (
        {name: _percent(ap) for name, ap in zip(AP_NAMES, scores.stats, strict=False)},
        [_percent(np.mean(part) if part.size else -1) for part in by_class],
    )


def _percent(value: float) -> float:
    # The library gives -1 where there is no object.
    return float(value * 100) if value >= 0 else float("nan")


def score_classes(rows: np.ndarray, ground_truth: COCO) -> COCOeval:
    """Return the evaluation of all classes, summarized in the log."""
    category_ids = ground_truth.getCatIds()
    precision, recall = [], []
    for label, category_id in enumerate(category_ids):
        found = coco_results(rows[rows["label"] == label], category_ids)
        for result in found:
            result["segmentation"] = None  # or the library makes a polygon of each box
        scores = COCOeval(
            ground_truth, ground_truth.loadRes(found), "bbox", print_function=logger.debug
        )
        scores.params.catIds = [category_id]
        scores.evaluate()
        precision.append(scores.eval["precision"])  # (IoU, recall, 1, area, detections)
        recall.append(scores.eval["recall"])  # (IoU, 1, area, detections)
    lines: list[str] = []
    scores = COCOeval(ground_truth, iouType="bbox", print_function=lines.append)
    scores.eval = {
        "precision": np.concatenate(precision, axis=2),
        "recall": np.concatenate(recall, axis=1),
    }
    scores.summarize()
    logger.info("COCO's evaluation\n%s", "\n".join(lines))
    return scores
