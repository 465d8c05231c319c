"""The detections of a dataset as rows: kept in little memory, and written as COCO's results."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor
from torchvision.ops import box_convert

from ..structures import Detections

# The box is xywh in pixels, the label a contiguous class index.
ROW = np.dtype([("image_id", "i8"), ("label", "i4"), ("score", "f4"), ("box", "f4", 4)])
RESULTS_FILE = "coco_instances_results.json"
# The number of detections that are Python objects at the same time while they are written.
_WRITTEN_AT_ONCE = 5_000


def require_finite(scores: Tensor) -> None:
    """
    Raises:
        FloatingPointError: a score is not finite, so that the model's weights cannot be.
    """
    if not scores.isfinite().all():
        raise FloatingPointError(
            "the model gives scores that are not numbers: its weights are not finite, such as "
            "those of a training that has diverged; take an earlier checkpoint"
        )


def tabulate(detections: Iterable[tuple[int, Detections]]) -> np.ndarray:
    """Return the detections of images as rows (D,) of type ``ROW``, 32 bytes each.

    Args:
        detections: image id and detections on the CPU, image after image.

    Raises:
        FloatingPointError: see :func:`require_finite`.
    """
    parts = [np.empty(0, dtype=ROW)]
    for image_id, found in detections:
        require_finite(found.scores)
        part = np.empty(len(found.labels), dtype=ROW)
        part["image_id"] = image_id
        part["label"] = found.labels.numpy()
        part["score"] = found.scores.float().numpy()
        part["box"] = box_convert(found.boxes.float(), "xyxy", "xywh").numpy()
        parts.append(part)
    return np.concatenate(parts)


def relabel(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return rows with the labels ``labels[label]``, without those where this is negative."""
    rows = rows[labels[rows["label"]] >= 0]
    rows["label"] = labels[rows["label"]]
    return rows


def coco_results(rows: np.ndarray, category_ids: Sequence[int]) -> list[dict]:
    """Return rows in COCO's results format.

    Args:
        rows: (D,) of type ``ROW``.
        category_ids: contiguous index -> COCO id.
    """
    columns = (rows[name].tolist() for name in ("image_id", "label", "box", "score"))
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for image_id, label, box, score in zip(*columns, strict=True)
    ]


def write_results(
    rows: np.ndarray, category_ids: Sequence[int], path: str, image_ids: Mapping[int, object]
) -> None:
    """Write rows in COCO's results format, a part at a time to save memory; ``image_ids`` replace
    theirs.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        for begin in range(0, len(rows), _WRITTEN_AT_ONCE):
            part = coco_results(rows[begin : begin + _WRITTEN_AT_ONCE], category_ids)
            for entry in part:
                entry["image_id"] = image_ids.get(entry["image_id"], entry["image_id"])
            file.write((", " if begin else "") + json.dumps(part)[1:-1])
        file.write("]")


def results_folder(cfg: CfgNode, name: str) -> str:
    """Return the folder for the results on a dataset: ``inference`` in OUTPUT_DIR, or a folder of
    the dataset's name in there when DATASETS.TEST names several.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return os.path.join(folder, name) if len(cfg.DATASETS.TEST) > 1 else folder
