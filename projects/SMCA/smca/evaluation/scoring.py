"""COCO's average precision by pycocotools, one class at a time.

The numbers of a class need no other class. So pycocotools, which needs much memory, holds only one
class at a time, and several processes can share the classes.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .detections import coco_results

logger = logging.getLogger(__name__)

# The first of COCO's numbers, in COCO's order and under Detectron2's names.
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CLASS_PREFIX = "AP-"  # before the name of a class
# Fewer detections are not worth another process.
_ROWS_PER_PROCESS = 50_000
# More processes would wait: nearly a third of COCO's objects are of one class.
_MAX_PROCESSES = 4


def average_precision(
    rows: np.ndarray, ground_truth: COCO, cocoeval: type[COCOeval] = COCOeval
) -> tuple[dict[str, float], list[float]]:
    """Return the numbers of ``AP_NAMES`` and the AP of each class, in percent; nan where there is
    no object.

    Args:
        rows: at least one detection, see :func:`~smca.evaluation.detections.tabulate`.
        ground_truth: see :func:`~smca.evaluation.ground_truth.read_ground_truth`.
        cocoeval: pycocotools' class, or another one that does the same.
    """
    scores = score_classes(rows, ground_truth, cocoeval)
    with contextlib.redirect_stdout(io.StringIO()) as summary:
        scores.summarize()
    logger.info("COCO's evaluation\n%s", summary.getvalue().rstrip())
    # (IoU, recall, class) of all areas and the largest number of detections.
    precision = scores.eval["precision"][..., 0, -1]
    by_class = [part[part > -1] for part in precision.transpose(2, 0, 1)]
    return (
        {name: _percent(ap) for name, ap in zip(AP_NAMES, scores.stats, strict=False)},
        [_percent(np.mean(part) if part.size else -1) for part in by_class],
    )


def _percent(value: float) -> float:
    # pycocotools gives -1 where there is no object.
    return float(value * 100) if value >= 0 else float("nan")


def score_classes(rows: np.ndarray, ground_truth: COCO, cocoeval: type[COCOeval]) -> COCOeval:
    """Return pycocotools' evaluation of all classes, ready to be summarized."""
    arguments = (rows, ground_truth, cocoeval)
    labels = range(len(ground_truth.getCatIds()))
    # Only forked processes share ground truth and detections without copies.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    processes = min(cores, _MAX_PROCESSES, len(labels), len(rows) // _ROWS_PER_PROCESS)
    with contextlib.redirect_stdout(io.StringIO()):
        if processes > 1:
            fork = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(processes, fork, _inherit, arguments) as pool:
                results = list(pool.map(_score_inherited, labels))
        else:
            results = [_score_class(*arguments, label) for label in labels]
        scores = cocoeval(ground_truth, iouType="bbox")
    precision, recall = zip(*results, strict=True)
    scores.eval = {
        "precision": np.concatenate(precision, axis=2),
        "recall": np.concatenate(recall, axis=1),
    }
    return scores


def _score_class(
    rows: np.ndarray, ground_truth: COCO, cocoeval: type[COCOeval], label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision (IoU, recall, 1, area, detections) and recall (IoU, 1, area, detections)."""
    category_ids = ground_truth.getCatIds()
    found = coco_results(rows[rows["label"] == label], category_ids)
    # Without a segmentation pycocotools would make a polygon of each box.
    found = [result | {"segmentation": None} for result in found]
    scores = cocoeval(ground_truth, ground_truth.loadRes(found) if found else COCO(), "bbox")
    scores.params.catIds = [category_ids[label]]
    scores.evaluate()
    scores.accumulate()
    return scores.eval["precision"], scores.eval["recall"]


_inherited: tuple[np.ndarray, COCO, type[COCOeval]]


def _inherit(*arguments: object) -> None:
    """Keep the arguments of :func:`_score_class` in a forked process."""
    global _inherited
    _inherited = arguments
    # Garbage collection would touch, and so copy, all inherited memory.
    gc.freeze()


def _score_inherited(label: int) -> tuple[np.ndarray, np.ndarray]:
    return _score_class(*_inherited, label)
