"""Detections in COCO's format for results."""

import contextlib
import logging
import os
from collections.abc import Sequence

import numpy as np
from fvcore.common.config import CfgNode

from ..data.classes import dataset_labels
from ..data.coco import dataset_files, load_coco
from ..errors import DatasetError
from ..evaluation.detections import coco_results, relabel, tabulate
from .predictor import Result
from .sources import Frame

logger = logging.getLogger(__name__)


class CocoResults:
    """Collects ``{"image_id", "category_id", "bbox": [x, y, w, h], "score", "file_name"}`` of each
    detection, and its ``"frame"`` in a video.

    If all inputs are images of one of the config's datasets, the ids are those of its annotation
    file, and detections of classes that it lacks are left out. Otherwise ``image_id`` counts the
    frames from 1, and ``category_id`` is the contiguous index of the class plus 1.
    """

    def __init__(self, cfg: CfgNode, class_names: Sequence[str], paths: Sequence[str]):
        """``paths`` are those of all inputs; empty if some inputs are videos or cameras."""
        self._image_ids, self._category_ids, self._labels = _ids(cfg, class_names, paths)
        self._count = 0
        self.entries: list[dict] = []

    def add(self, frame: Frame, result: Result) -> None:
        self._count += 1
        name = frame.source.name
        place = {"file_name": name} | ({} if frame.number is None else {"frame": frame.number})
        image_id = self._image_ids.get(os.path.realpath(name), self._count)
        rows = relabel(tabulate([(image_id, result)]), self._labels)
        self.entries += [entry | place for entry in coco_results(rows, self._category_ids)]


def _ids(
    cfg: CfgNode, class_names: Sequence[str], paths: Sequence[str]
) -> tuple[dict[str, int], Sequence[int], np.ndarray]:
    """Image ids by path, category ids by label, and the label of each class of the model, of the
    dataset that has all images and some of the classes.

    If there is no such dataset, there are no image ids, and the category ids count from 1. A
    dataset with all images and none of the classes is warned of.
    """
    wanted = {os.path.realpath(path) for path in paths}
    for name in dict.fromkeys((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)):
        with contextlib.suppress(DatasetError):
            json_file, image_root = dataset_files(cfg, name)
            root = os.path.join(os.path.realpath(image_root), "")
            # Annotation files may be large, so that only likely ones are read.
            if not wanted or not all(path.startswith(root) for path in wanted):
                continue
            dataset = load_coco(name, json_file, image_root, needs_annotations=False)
            ids = {
                os.path.realpath(each["file_name"]): each["image_id"] for each in dataset.records
            }
            if wanted <= ids.keys():
                try:
                    labels = dataset_labels(name, dataset.class_names, class_names)
                except DatasetError as error:
                    logger.warning("%s. Until then all ids in the results count from 1", error)
                    break
                return ids, dataset.category_ids, labels
    return {}, range(1, len(class_names) + 1), np.arange(len(class_names))
