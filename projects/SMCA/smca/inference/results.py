"""Detections in COCO's format for results."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode
from torchvision.ops import box_convert

from ..data.coco import CocoDataset, dataset_files, load_coco
from ..errors import DatasetError

if TYPE_CHECKING:
    from .predictor import Result
    from .sources import Frame


class CocoResults:
    """Collects ``{"image_id", "category_id", "bbox": [x, y, w, h], "score", "file_name"}`` of each
    detection, and its ``"frame"`` in a video.

    If all inputs are images of one of the config's datasets, the ids are those of its annotation
    file. Otherwise ``image_id`` counts the frames from 1, and ``category_id`` is the contiguous
    index of the class plus 1.
    """

    def __init__(self, cfg: CfgNode, class_names: Sequence[str], paths: Sequence[str]):
        """
        Args:
            cfg: config whose datasets may have the inputs.
            class_names: class names of the model.
            paths: paths of all inputs; empty if some inputs are videos or cameras.
        """
        dataset = _dataset_of(cfg, class_names, paths)
        self._image_ids = _ids_by_path(dataset) if dataset else {}
        self._category_ids = dataset.category_ids if dataset else range(1, len(class_names) + 1)
        self._count = 0
        self.entries: list[dict] = []

    def add(self, frame: Frame, result: Result) -> None:
        self._count += 1
        name = frame.source.name
        place = {"file_name": name} | ({} if frame.number is None else {"frame": frame.number})
        image_id = self._image_ids.get(os.path.realpath(name), self._count)
        boxes = box_convert(result.boxes, "xyxy", "xywh").tolist()
        self.entries += [
            {
                "image_id": image_id,
                "category_id": self._category_ids[label],
                "bbox": box,
                "score": score,
                **place,
            }
            for box, score, label in zip(
                boxes, result.scores.tolist(), result.labels.tolist(), strict=True
            )
        ]

    def write(self, path: str | os.PathLike) -> None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.entries, file)


def _dataset_of(
    cfg: CfgNode, class_names: Sequence[str], paths: Sequence[str]
) -> CocoDataset | None:
    """The dataset that has all these images and the model's classes, if there is one."""
    wanted = {os.path.realpath(path) for path in paths}
    for name in dict.fromkeys((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)):
        try:
            json_file, image_root = dataset_files(cfg, name)
            root = os.path.join(os.path.realpath(image_root), "")
            # Annotation files may be large, so that only likely ones are read.
            if not wanted or not all(path.startswith(root) for path in wanted):
                continue
            dataset = load_coco(name, json_file, image_root)
        except DatasetError:
            continue
        if dataset.class_names == tuple(class_names) and wanted <= set(_ids_by_path(dataset)):
            return dataset
    return None


def _ids_by_path(dataset: CocoDataset) -> dict[str, int]:
    return {os.path.realpath(record["file_name"]): record["image_id"] for record in dataset.records}
