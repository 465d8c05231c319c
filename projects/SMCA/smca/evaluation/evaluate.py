"""The evaluation of a whole dataset, for both hosts."""

import logging
import math
import os
from collections.abc import Sequence

import numpy as np
from faster_coco_eval import COCO

from ..errors import DatasetError
from .detections import RESULTS_FILE, write_results
from .scoring import AP_NAMES, CLASS_PREFIX, average_precision

logger = logging.getLogger(__name__)


def evaluate(
    name: str,
    rows: np.ndarray,
    ground_truth: COCO,
    output_dir: str,
    *,
    by_class: bool = True,
) -> dict[str, dict[str, float]]:
    """Write the detections of a dataset to ``coco_instances_results.json``, and score them.

    Args:
        name: the dataset.
        rows: the detections of all workers, see :func:`~smca.evaluation.detections.tabulate`.
        ground_truth: see :func:`~smca.evaluation.ground_truth.read_ground_truth`.
        output_dir: folder of the file.
        by_class: add the AP of each class.

    Returns:
        ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>", ...}}`` in percent;
        nan where there is no object of the kind, or no detection at all. A dataset of one class has
        no "AP-<class>". Empty if the dataset has no annotations, such as COCO's test-dev.

    Raises:
        DatasetError: a detection has a label that the dataset does not have.
    """
    category_ids = ground_truth.getCatIds()
    classes = len(category_ids)
    unknown = rows[rows["label"] >= classes]
    if len(unknown):
        raise DatasetError(
            f"image {unknown['image_id'][0]} has a detection of class {unknown['label'][0]}, but "
            f"dataset {name!r} has {classes} classes; MODEL.SMCA.NUM_CLASSES must be {classes}"
        )
    path = os.path.join(output_dir, RESULTS_FILE)
    write_results(rows, category_ids, path)
    logger.info("%s: %d detections written to %s", name, len(rows), path)
    if "annotations" not in ground_truth.dataset:
        logger.info("%s: no AP, since its annotation file has no annotations", name)
        return {}
    if not len(rows):
        logger.warning("%s: there are no detections to evaluate", name)
        return {"bbox": dict.fromkeys(AP_NAMES, math.nan)}
    result, class_aps = average_precision(rows, ground_truth)
    if by_class and classes > 1:
        names = distinct([category["name"] for category in ground_truth.dataset["categories"]])
        result |= {CLASS_PREFIX + name: ap for name, ap in zip(names, class_aps, strict=True)}
    logger.info("%s: %s", name, "  ".join(f"{key} {ap:.2f}" for key, ap in result.items()))
    return {"bbox": result}


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names, those that repeat an earlier one with a number."""
    taken: dict[str, None] = {}
    for name in names:
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name} ({number})"
        taken[unique] = None
    return list(taken)
