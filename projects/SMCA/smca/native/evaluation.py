"""COCO's average precision, by pycocotools, under the names that Detectron2 gives it.

pycocotools' own numbers, computed a class at a time: no class's needs another's, most of what
pycocotools keeps is then kept of one class only, and classes can be shared out to processes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert

from ..data.coco import CocoDataset, DatasetError, complete_annotations
from ..modeling.heads import Detections

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RESULTS_FILE = "coco_instances_results.json"
# Detections that are written at once, and are worth a process.
_PART = 50_000
# At most: nearly a third of COCO's objects are of one class.
_PROCESSES = 4


def evaluate(
    detections: Iterable[tuple[int, Detections]],
    dataset: CocoDataset,
    output_dir: str,
    *,
    by_class: bool = True,
) -> dict[str, dict[str, float]]:
    """Score the detections of a whole dataset, and write them as COCO's results.

    Args:
        detections: image id and detections, on the CPU; an image without any may be left out.
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
    found = _collect(detections, dataset)
    path = os.path.join(output_dir, RESULTS_FILE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    found.write(path)
    logger.info("%s: %d detections written to %s", dataset.name, len(found), path)
    if not len(found):
        logger.warning("%s: there are no detections to evaluate", dataset.name)
        return {"bbox": dict.fromkeys(_METRICS, float("nan"))}

    with contextlib.redirect_stdout(io.StringIO()):
        scores = _score(_truth(dataset.json_file), found)
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


@dataclass(frozen=True)
class _Found:
    """The D detections of a dataset, image after image.

    Attributes:
        category_ids: contiguous index -> COCO id.
        image_ids, labels, scores: (D,).
        boxes: (D, 4) xywh in pixels.
    """

    category_ids: Sequence[int]
    image_ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, part: slice | np.ndarray) -> list[dict]:
        """Some of them as COCO's results."""
        columns = (self.image_ids, self.labels, self.boxes, self.scores)
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": box,
                "score": score,
            }
            for image_id, label, box, score in zip(
                *(column[part].tolist() for column in columns), strict=True
            )
        ]

    def write(self, path: str) -> None:
        """Write a list of all, in parts: as Python's objects they would fill the memory."""
        with open(path, "w", encoding="utf-8") as file:
            for begin in range(0, len(self), _PART):
                part = json.dumps(self.rows(slice(begin, begin + _PART)))
                file.write((", " if begin else "[") + part[1:-1])
            file.write("]" if len(self) else "[]")


def _collect(detections: Iterable[tuple[int, Detections]], dataset: CocoDataset) -> _Found:
    classes = len(dataset.category_ids)
    image_ids = [np.empty(0, dtype=np.int64)]
    parts = [Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))]
    for image_id, found in detections:
        if found.labels.numel() and int(found.labels.max()) >= classes:
            raise DatasetError(
                f"image {image_id} has a detection of class {int(found.labels.max())}, but dataset "
                f"{dataset.name!r} has {classes} classes; MODEL.SMCA.NUM_CLASSES must be {classes}"
            )
        image_ids.append(np.full(len(found.labels), image_id))
        parts.append(found)
    boxes = torch.cat([found.boxes.float() for found in parts])
    return _Found(
        category_ids=dataset.category_ids,
        image_ids=np.concatenate(image_ids),
        labels=torch.cat([found.labels for found in parts]).numpy(),
        boxes=box_convert(boxes, "xyxy", "xywh").numpy(),
        scores=torch.cat([found.scores for found in parts]).numpy(),
    )


def _truth(json_file: str) -> COCO:
    truth = COCO()
    with open(json_file, encoding="utf-8") as file:
        truth.dataset = json.load(file)
    complete_annotations(truth.dataset["annotations"])
    truth.createIndex()
    return truth


def _score(truth: COCO, found: _Found) -> COCOeval:
    """pycocotools' evaluation, ready to be summarized."""
    # The largest classes first, so that no process is left with one at the end.
    counts = np.bincount(found.labels, minlength=len(found.category_ids))
    order = np.argsort(-counts, kind="stable")
    if (processes := _processes(found)) > 1:
        with ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("fork"),
            initializer=_inherit,
            initargs=(truth, found),
        ) as pool:
            results = list(pool.map(_score_inherited, order))
    else:
        results = [_score_class(truth, found, index) for index in order]
    precision, recall = zip(*(results[place] for place in np.argsort(order)), strict=True)
    scores = COCOeval(truth, iouType="bbox")
    scores.eval = {
        "precision": np.concatenate(precision, axis=2),
        "recall": np.concatenate(recall, axis=1),
    }
    return scores


def _processes(found: _Found) -> int:
    if sys.platform != "linux":
        # Only forked processes have truth and detections without copies.
        return 1
    cores = len(os.sched_getaffinity(0))
    return min(cores, _PROCESSES, len(found.category_ids), len(found) // _PART)


def _score_class(truth: COCO, found: _Found, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision (IoU, recall, 1, area, detections) and recall (IoU, 1, area, detections)."""
    rows = found.rows(np.flatnonzero(found.labels == index))
    scores = COCOeval(truth, truth.loadRes(rows) if rows else COCO(), "bbox")
    scores.params.catIds = [found.category_ids[index]]
    scores.evaluate()
    scores.accumulate()
    return scores.eval["precision"], scores.eval["recall"]


_inherited: tuple[COCO, _Found]


def _inherit(truth: COCO, found: _Found) -> None:
    global _inherited
    _inherited = truth, found


def _score_inherited(index: int) -> tuple[np.ndarray, np.ndarray]:
    return _score_class(*_inherited, index)


def _class_precision(scores: COCOeval, dataset: CocoDataset) -> dict[str, float]:
    """AP of each class: all areas, most detections."""
    results = {}
    for index, name in enumerate(dataset.class_names):
        precision = scores.eval["precision"][:, :, index, 0, -1]  # (IoU, recall)
        precision = precision[precision > -1]
        results[f"AP-{name}"] = float(np.mean(precision) * 100) if precision.size else float("nan")
    return results
