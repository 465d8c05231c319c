"""The evaluation of a dataset for both hosts: COCO's average precision by faster-coco-eval."""

import logging
import math
import os
from collections import Counter
from operator import itemgetter

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval import COCOeval_faster as COCOeval

from ..data.classes import distinct
from ..data.coco_format import is_number, read_annotation_file
from ..errors import DatasetError
from .detections import RESULTS_FILE, coco_results, relabel, write_results

logger = logging.getLogger(__name__)

# COCO's numbers under Detectron2's names, all at the largest number of detections; and their places
# among those of COCO, which also have the recall of 1 and of 10 detections.
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
METRICS = (*AP_NAMES, "AR", "ARs", "ARm", "ARl")
_PLACES = (*range(6), *range(8, 12))
CLASS_PREFIX = "AP-"  # before the name of a class


class GroundTruth(COCO):
    """Annotations for faster-coco-eval, whose image ids have to be whole numbers.

    Attributes:
        numbers: image id of the dataset -> the number that stands for it here; itself if it is one.
    """

    numbers: dict[object, int]


def read_ground_truth(name: str, json_file: str, content: dict | None = None) -> GroundTruth:
    """Read the annotation file of dataset ``name`` for faster-coco-eval.

    Args:
        content: of the file, if it has been read.

    Returns:
        images, categories and annotations with the keys that scoring needs. The categories are in
        the order of their ids, which is that of the contiguous labels. Annotations get new ids,
        since a match with annotation 0 would be taken for no match. A missing area becomes the
        box's, a missing ``iscrowd`` 0. A box without extent, or one that is not finite, becomes
        empty: it counts as missed.

    Raises:
        DatasetError: the file cannot be read, or is no longer in COCO's format.
    """
    content = content or read_annotation_file(name, json_file)
    coco = GroundTruth()
    try:
        ids = [entry["id"] for entry in content["images"]]
        whole = np.array(ids).dtype.kind == "i"
        numbers = {each: int(each) if whole else place for place, each in enumerate(ids)}
        coco.numbers = numbers
        coco.dataset = {
            "images": [{"id": number} for number in numbers.values()],
            "categories": [
                {"id": entry["id"], "name": entry["name"]}
                for entry in sorted(content["categories"], key=itemgetter("id"))
            ],
        }
        if "annotations" in content:
            entries = content["annotations"]
            coco.dataset["annotations"] = [
                _annotation(entry, number, numbers[entry["image_id"]])
                for number, entry in enumerate(entries, start=1)
                if entry["image_id"] in numbers
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


def _annotation(entry: dict, number: int, image: int) -> dict:
    x, y, w, h = entry["bbox"]
    valid = all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0
    box = [x, y, w, h] if valid else [0, 0, 0, 0]
    area = entry.get("area")
    return {
        "id": number,
        "image_id": image,
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
    ground_truth: GroundTruth,
    output_dir: str,
    *,
    labels: np.ndarray | None = None,
    by_class: bool = True,
    max_dets_per_image: int = 100,
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
        max_dets_per_image: how many of the best detections of a class count in an image, as in
            Detectron2's ``COCOEvaluator``.

    Returns:
        ``{"bbox": {"AP", ..., "ARl", "AP-<class>", ...}}``, see ``METRICS``, in percent; nan where
        there is no object of the kind, or no detection at all. A dataset of one class has no
        "AP-<class>". Empty if the dataset has no annotations, such as COCO's test-dev.

    Raises:
        DatasetError: a detection has a label that the dataset does not have.
    """
    category_ids = ground_truth.getCatIds()
    image_ids = {n: image_id for image_id, n in ground_truth.numbers.items() if n != image_id}
    classes = len(category_ids)
    if labels is not None:
        rows = relabel(rows, labels)
    unknown = rows[rows["label"] >= classes]
    if len(unknown):
        image = int(unknown["image_id"][0])
        raise DatasetError(
            f"image {image_ids.get(image, image)} has a detection of class {unknown['label'][0]}, "
            f"but dataset {name!r} has {classes} classes; MODEL.SMCA.NUM_CLASSES must be {classes}"
        )
    path = os.path.join(output_dir, RESULTS_FILE)
    write_results(rows, category_ids, path, image_ids)
    logger.info("%s: %d detections written to %s", name, len(rows), path)
    if not (objects := ground_truth.dataset.get("annotations")):
        logger.info("%s: there is nothing to score with, it has no annotations", name)
        return {}
    single = ((each["image_id"], each["category_id"]) for each in objects if not each["iscrowd"])
    most = max(Counter(single).values(), default=0)
    if most == 0:
        logger.warning(
            "%s: all annotations are crowds (iscrowd 1), which count as no objects: AP is nan; set "
            "iscrowd 0 where a box holds one object",
            name,
        )
    if most > max_dets_per_image:
        logger.warning(
            "%s: an image has %d objects of one class, of which only %d can count as found: raise "
            "TEST.MAX_DETS_PER_IMAGE to %d, and TEST.DETECTIONS_PER_IMAGE at least as far",
            *(name, most, max_dets_per_image, most),
        )
    if not len(rows):
        logger.warning("%s: there are no detections to evaluate", name)
        return {"bbox": dict.fromkeys(METRICS, math.nan)}
    scores = score_classes(rows, ground_truth, max_dets_per_image)
    result = {key: _percent(scores.stats[at]) for key, at in zip(METRICS, _PLACES, strict=True)}
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


def score_classes(rows: np.ndarray, ground_truth: COCO, max_dets_per_image: int = 100) -> COCOeval:
    """Return the evaluation of all classes, of at least one detection, summarized in the log.

    The numbers of a class need no other class, and a class at a time needs a fraction of the
    memory.
    """
    category_ids = ground_truth.getCatIds()
    # Without the categories, all of which loadRes would copy for each class.
    images = COCO({"images": ground_truth.dataset["images"], "categories": []})
    limits = [1, 10, max_dets_per_image]
    precision, recall = [], []
    for label, category_id in enumerate(category_ids):
        found = coco_results(rows[rows["label"] == label], category_ids)
        for result in found:
            result["segmentation"] = None  # or the library makes a polygon of each box
        scores = COCOeval(ground_truth, images.loadRes(found), "bbox", print_function=logger.debug)
        scores.params.catIds, scores.params.maxDets = [category_id], limits
        scores.evaluate()
        precision.append(scores.eval["precision"])  # (IoU, recall, 1, area, detections)
        recall.append(scores.eval["recall"])  # (IoU, 1, area, detections)
    lines: list[str] = []
    scores = COCOeval(ground_truth, iouType="bbox", print_function=lines.append)
    scores.params.maxDets = limits
    scores.eval = {
        "precision": np.concatenate(precision, axis=2),
        "recall": np.concatenate(recall, axis=1),
    }
    scores.summarize()
    logger.info("COCO's evaluation\n%s", "\n".join(lines))
    return scores
