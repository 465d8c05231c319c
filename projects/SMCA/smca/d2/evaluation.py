"""COCO's average precision by Detectron2's evaluator."""

from __future__ import annotations

import os
from unittest import mock

from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.coco import complete_annotations


class _Truth(COCO):
    """The annotations of a file, with what it leaves out."""

    def createIndex(self) -> None:
        complete_annotations(self.dataset.get("annotations", []))
        super().createIndex()


class CocoEvaluator(COCOEvaluator):
    """Detectron2's evaluator for boxes, also of annotation files that leave things out.

    Of its two files it writes ``coco_instances_results.json`` alone: in the other one,
    ``instances_predictions.pth``, there would be the same.
    """

    def __init__(self, dataset_name: str, *, output_dir: str, by_class: bool = True):
        """
        Args:
            dataset_name: a registered dataset.
            output_dir: where the results go, in COCO's format.
            by_class: also the AP of each class.
        """
        self.by_class = by_class
        # The evaluator reads the file itself, and cannot where annotations have no ids.
        with mock.patch.object(coco_evaluation, "COCO", _Truth):
            super().__init__(dataset_name, tasks=("bbox",), output_dir=output_dir)
        self._results_dir, self._output_dir = output_dir, None

    def _eval_predictions(self, predictions: list[dict], img_ids: list[int] | None = None) -> None:
        os.makedirs(self._results_dir, exist_ok=True)
        self._output_dir = self._results_dir
        super()._eval_predictions(predictions, img_ids)
        self._output_dir = None

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        names = class_names if self.by_class else None
        return super()._derive_coco_results(coco_eval, iou_type, names)
