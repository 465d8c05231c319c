"""The evaluation of a dataset for both hosts: COCO's average precision by faster-coco-eval."""

import logging
import math
import os
from operator import itemgetter

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval import COCOeval_faster as COCOeval

from ..data.classes import distinct
from ..data.coco_format import is_number, read_annotation_file
from ..errors import DatasetError
from .detections import RESULTS_FILE, coco_results, relabel, write_results

logger = logging.getLogger(__name__)

# The first of COCO's numbers, in COCO's order and under Detectron2's names.
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CLASS_PREFIX = "AP-"  # before the name of a class


def read_ground_truth(name: str, json_file: str) -> COCO:
    """Read the annotation file of dataset ``name`` for faster-coco-eval.

    Returns:
        images, categories and annotations with the keys that scoring needs. The categories are in
        the order of their ids, which is that of the contiguous labels. Annotations get new ids,
        since a match with annotation 0 would be taken for no match. A missing area becomes the
        box's, a missing ``iscrowd`` 0. A box without extent, or one that is not finite, becomes
        empty: it counts as missed.

    Raises:
        DatasetError: the file cannot be read, or is no longer in COCO's format.
    """
    content = read_annotation_file(name, json_file)
    coco = COCO()
    try:
        coco.dataset = {
            "images": [{"id": entry["id"]} for entry in content["images"]],
            "categories": [
                {"id": entry["id"], "name": entry["name"]}
                for entry in sorted(content["categories"], key=itemgetter("id"))
            ],
        }
        if "annotations" in content:
            entries = content["annotations"]
            coco.dataset["annotations"] = [
                _annotation(entry, number) for number, entry in enumerate(entries, start=1)
            ]
            wrong = sum("area" in entry and not _is_area(entry["area"]) for entry in entries)
            if wrong:
                logger.warning("%s: %d invalid areas are replaced by their boxes'", name, wrong)
        coco.createIndex()
    except (LookupError, TypeError, ValueError) as error:
        raise DatasetError(
            f"dataset {name!r}: {json_file} cannot be scored against, perhaps it has changed "
            f"since it was loaded: {error!r}"
        ) from error
    return coco


def _annotation(entry: dict, number: int) -> dict:
    x, y, w, h = entry["bbox"]
    valid = all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0
    box = [x, y, w, h] if valid else [0, 0, 0, 0]
    area = entry.get("area")
    return {
        "id": number,
        "image_id": entry["image_id"],
        "category_id": entry["category_id"],
        "bbox": box,
        "area": area if _is_area(area) else box[2] * box[3],
        "iscrowd": int(entry.get("iscrowd", 0)),
    }


def _is_area(area: object) -> bool:
    return is_number(area) and 0 <= area < math.inf


def evaluate(
    name: str,
    rows: np.ndarray,
    ground_truth: COCO,
    output_dir: str,
    *,
    labels: np.ndarray | None = None,
    by_class: bool = True,
) -> dict[str, dict[str, float]]:
    """Write the detections of a dataset to ``coco_instances_results.json``, and score them.

    Args:
        name: the dataset.
        rows: the detections of all workers, see :func:`~smca.evaluation.detections.tabulate`.
        ground_truth: see :func:`read_ground_truth`.
        output_dir: folder of the file.
        labels: what each label of the model is in the dataset, see
            :func:`~smca.data.classes.dataset_labels`; None: the same.
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
    if labels is not None:
        rows = relabel(rows, labels)
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
    scores = score_classes(rows, ground_truth)
    result = dict(zip(AP_NAMES, map(_percent, scores.stats), strict=False))
    if by_class and classes > 1:
        names = distinct([category["name"] for category in ground_truth.dataset["categories"]])
        # (IoU, recall, class) of all areas and the largest number of detections.
        precision = np.ma.masked_less(scores.eval["precision"][..., 0, -1], 0)
        aps = precision.mean(axis=(0, 1)).filled(-1)
        result |= {CLASS_PREFIX + key: _percent(ap) for key, ap in zip(names, aps, strict=True)}
    logger.info("%s: %s", name, "  ".join(f"{key} {ap:.2f}" for key, ap in result.items()))
    return {"bbox": result}


def _percent(value: float) -> float:
    # The library gives -1 where there is no object.
    return float(value * 100) if value >= 0 else float("nan")


def score_classes(rows: np.ndarray, ground_truth: COCO) -> COCOeval:
    """Return the evaluation of all classes, of at least one detection, summarized in the log.

    The numbers of a class need no other class, and a class at a time needs a fraction of the
    memory.
    """
    category_ids = ground_truth.getCatIds()
    # Without the categories, all of which loadRes would copy for each class.
    images = COCO({"images": ground_truth.dataset["images"], "categories": []})
    precision, recall = [], []
    for label, category_id in enumerate(category_ids):
        found = coco_results(rows[rows["label"] == label], category_ids)
        for result in found:
            result["segmentation"] = None  # or the library makes a polygon of each box
        scores = COCOeval(ground_truth, images.loadRes(found), "bbox", print_function=logger.debug)
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
