"""COCO's average precision by Detectron2's evaluator, in little memory."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from unittest import mock

import numpy as np
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.utils import comm

from ..evaluation.ground_truth import distinct, read_truth
from ..evaluation.scoring import Found, score, tabulate
from ..structures import Detections

logger = logging.getLogger(__name__)

_RESULTS_FILE = "coco_instances_results.json"


class CocoEvaluator(COCOEvaluator):
    """Detectron2's evaluator for boxes, also of annotation files that leave things out.

    Detections are kept as arrays, where Detectron2 makes a dict of each, and scored a class at a
    time. Of Detectron2's two files it writes ``coco_instances_results.json`` alone: in the other
    one, ``instances_predictions.pth``, there would be the same.
    """

    def __init__(self, dataset_name: str, *, output_dir: str, by_class: bool = True):
        """
        Args:
            dataset_name: a registered dataset.
            output_dir: where the results go, in COCO's format.
            by_class: also the AP of each class.
        """
        self.name = dataset_name
        self.by_class = by_class
        # The evaluator would read the file itself, and trip over what is odd in it.
        with mock.patch.object(coco_evaluation, "COCO", partial(read_truth, dataset_name)):
            super().__init__(dataset_name, tasks=("bbox",), output_dir=output_dir)

    def reset(self) -> None:
        self._parts: list[np.ndarray] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        found = [output["instances"].to("cpu") for output in outputs]
        detections = [Detections(i.pred_boxes.tensor, i.scores, i.pred_classes) for i in found]
        images = [image["image_id"] for image in inputs]
        self._parts.append(tabulate(zip(images, detections, strict=True)))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """AP of all that was processed, ``{"bbox": {...}}``; empty on all but the first worker.

        Raises:
            DatasetError: a label that the dataset does not have.
        """
        comm.synchronize()
        gathered = comm.gather(tabulate([]) if not self._parts else np.concatenate(self._parts))
        if not comm.is_main_process():
            return {}
        found = Found(np.concatenate(gathered), self._category_ids())
        found.check(self.name)
        path = os.path.join(self._output_dir, _RESULTS_FILE)
        found.write(path)
        logger.info("%s: %d detections written to %s", self.name, len(found.rows), path)
        if not self._do_evaluation:
            logger.info("%s: its annotation file has no annotations to evaluate with", self.name)
            return {}
        scores = None
        if len(found.rows):
            with _quiet():
                scores = score(self._coco_api, found, coco_evaluation.COCOeval_opt)
            log = io.StringIO()
            with contextlib.redirect_stdout(log):
                scores.summarize()
            logger.info("%s: evaluation\n%s", self.name, log.getvalue().rstrip())
        classes = self._metadata.get("thing_classes") if self.by_class else None
        return {"bbox": self._derive_coco_results(scores, "bbox", distinct(classes or ()))}

    def _category_ids(self) -> Sequence[int]:
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        return sorted(ids, key=ids.get) if ids else self._coco_api.getCatIds()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Detectron2 logs of every class."""
    noisy = logging.getLogger("detectron2.evaluation.fast_eval_api")
    level = noisy.level
    noisy.setLevel(logging.WARNING)
    try:
        yield
    finally:
        noisy.setLevel(level)
