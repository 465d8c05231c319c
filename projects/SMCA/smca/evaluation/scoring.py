"""The detections of a dataset: kept in little memory, written as COCO's results, and scored.

By pycocotools, a class at a time: no class's numbers need another's, and most of what pycocotools
keeps is then kept of one class only. Classes can be shared out to processes.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert

from ..errors import DatasetError
from ..structures import Detections

# The boxes are xywh in pixels, the labels contiguous.
ROW = np.dtype([("image_id", "i8"), ("label", "i4"), ("score", "f4"), ("box", "f4", 4)])

# Detections that are Python's objects at once, while they are written.
_WRITTEN = 5_000
# Detections that are worth a process.
_PART = 50_000
# At most: nearly a third of COCO's objects are of one class.
_PROCESSES = 4


def tabulate(detections: Iterable[tuple[int, Detections]]) -> np.ndarray:
    """Detections of images as rows (D,) of type ``ROW``, 32 bytes each, image after image.

    Args:
        detections: image id and detections, on the CPU.
    """
    parts = [np.empty(0, dtype=ROW)]
    for image_id, found in detections:
        part = np.empty(len(found.labels), dtype=ROW)
        part["image_id"] = image_id
        part["label"] = found.labels.numpy()
        part["score"] = found.scores.float().numpy()
        part["box"] = box_convert(found.boxes.float(), "xyxy", "xywh").numpy()
        parts.append(part)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Found:
    """The detections of a dataset.

    Attributes:
        rows: (D,) of type ``ROW``.
        category_ids: contiguous index -> COCO id.
    """

    rows: np.ndarray
    category_ids: Sequence[int]

    def check(self, name: str) -> None:
        """
        Raises:
            DatasetError: a label that dataset ``name`` does not have.
        """
        classes = len(self.category_ids)
        for row in self.rows[self.rows["label"] >= classes][:1]:
            raise DatasetError(
                f"image {row['image_id']} has a detection of class {row['label']}, but dataset "
                f"{name!r} has {classes} classes; MODEL.SMCA.NUM_CLASSES must be {classes}"
            )

    def write(self, path: str) -> None:
        """Write all as COCO's results, in parts: as Python's objects they would fill the memory."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            for begin in range(0, len(self.rows), _WRITTEN):
                part = json.dumps(self.results(self.rows[begin : begin + _WRITTEN]))
                file.write((", " if begin else "[") + part[1:-1])
            file.write("]" if len(self.rows) else "[]")

    def results(self, rows: np.ndarray) -> list[dict]:
        """Some rows as COCO's results."""
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": box,
                "score": score,
            }
            for image_id, label, box, score in zip(
                *(rows[name].tolist() for name in ("image_id", "label", "box", "score")),
                strict=True,
            )
        ]

    def of_class(self, label: int) -> list[dict]:
        """Those of a class as COCO's results."""
        return self.results(self.rows[self.rows["label"] == label])


def score(truth: COCO, found: Found, evaluation: type[COCOeval] = COCOeval) -> COCOeval:
    """pycocotools' evaluation of boxes, ready to be summarized.

    Args:
        truth: the annotations.
        found: at least one detection.
        evaluation: pycocotools' or one that does the same.
    """
    # The largest classes first, so that no process is left with one at the end.
    counts = np.bincount(found.rows["label"], minlength=len(found.category_ids))
    order = np.argsort(-counts, kind="stable")
    with contextlib.redirect_stdout(io.StringIO()):
        if (processes := _processes(found)) > 1:
            with ProcessPoolExecutor(
                processes,
                mp_context=multiprocessing.get_context("fork"),
                initializer=_inherit,
                initargs=(truth, found, evaluation),
            ) as pool:
                results = list(pool.map(_score_inherited, order))
        else:
            results = [_score_class(truth, found, evaluation, index) for index in order]
        scores = evaluation(truth, iouType="bbox")
    precision, recall = zip(*(results[place] for place in np.argsort(order)), strict=True)
    scores.eval = {
        "precision": np.concatenate(precision, axis=2),
        "recall": np.concatenate(recall, axis=1),
    }
    return scores


def _processes(found: Found) -> int:
    if sys.platform != "linux":
        # Only forked processes have truth and detections without copies.
        return 1
    cores = len(os.sched_getaffinity(0))
    return min(cores, _PROCESSES, len(found.category_ids), len(found.rows) // _PART)


def _score_class(
    truth: COCO, found: Found, evaluation: type[COCOeval], label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (IoU, recall, 1, area, detections) and recall (IoU, 1, area, detections)."""
    # pycocotools would make a polygon of each box.
    results = [result | {"segmentation": None} for result in found.of_class(label)]
    scores = evaluation(truth, truth.loadRes(results) if results else COCO(), "bbox")
    scores.params.catIds = [found.category_ids[label]]
    scores.evaluate()
    scores.accumulate()
    return scores.eval["precision"], scores.eval["recall"]


_inherited: tuple[COCO, Found, type[COCOeval]]


def _inherit(*inherited: object) -> None:
    global _inherited
    _inherited = inherited
    # Collections that look at what is inherited would copy it into each process.
    gc.freeze()


def _score_inherited(label: int) -> tuple[np.ndarray, np.ndarray]:
    return _score_class(*_inherited, label)
