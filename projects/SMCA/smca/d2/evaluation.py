"""COCO's average precision by Detectron2's evaluator."""

from __future__ import annotations

import contextlib
import io

from detectron2.evaluation import COCOEvaluator


class CocoEvaluator(COCOEvaluator):
    """Detectron2's evaluator for boxes, also of annotation files that leave things out."""

    def __init__(self, dataset_name: str, *, output_dir: str):
        """
        Args:
            dataset_name: a registered dataset.
            output_dir: where the results go, in COCO's format.
        """
        super().__init__(dataset_name, tasks=("bbox",), output_dir=output_dir)
        for number, annotation in enumerate(self._coco_api.dataset.get("annotations", ()), start=1):
            # pycocotools takes a match with annotation 0 for no match.
            annotation["id"] = number
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()
