"""COCO's average precision as a Detectron2 evaluator."""

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..data.classes import dataset_labels
from ..errors import DatasetError
from ..evaluation.detections import tabulate
from ..evaluation.evaluate import evaluate, read_ground_truth
from .datasets import coco_content
from .meta_arch import to_detections


class CocoEvaluator(COCOEvaluator):
    """Detectron2's evaluator for boxes, with the ground truth and the scoring of both hosts.

    The constructor replaces Detectron2's, which has pycocotools read the annotation file as it is:
    an annotation without an id is a KeyError there, and one with id 0 is never found. ``process``
    keeps detections as arrays, where Detectron2 makes a dict of each. ``evaluate`` does not write
    ``instances_predictions.pth``, which would repeat ``coco_instances_results.json``.

    Attributes:
        known: the classes of the model, see :func:`~smca.data.classes.dataset_labels`; None: those
            of the dataset.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str,
        by_class: bool = True,
        max_dets_per_image: int = 100,
    ):
        """
        Args:
            dataset_name: a registered dataset. As in Detectron2, one without ``json_file`` in its
                metadata is converted to COCO's format.
            output_dir: folder of ``coco_instances_results.json``.
            by_class, max_dets_per_image: see :func:`~smca.evaluation.evaluate.evaluate`.

        Raises:
            DatasetError: the annotation file cannot be read, or the dataset cannot be converted.
        """
        self._tasks = ("bbox",)
        self._output_dir = output_dir
        self._options = {"by_class": by_class, "max_dets_per_image": max_dets_per_image}
        self._metadata = MetadataCatalog.get(dataset_name)
        self.known: Sequence[str] | int | None = None
        self._labels: np.ndarray | None = None
        if json_file := self._metadata.get("json_file"):
            place = PathManager.get_local_path(json_file)
            self._coco_api = read_ground_truth(dataset_name, place)
        else:
            content = coco_content(dataset_name)
            self._coco_api = read_ground_truth(dataset_name, "its records", content)

    def reset(self) -> None:
        """Begin an evaluation of the dataset, which has been read.

        Raises:
            DatasetError: the dataset has no class of the model.
        """
        super().reset()
        names = self._metadata.get("thing_classes")
        if self.known and names:
            self._labels = dataset_labels(self._metadata.name, names, self.known)

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        try:
            images = [self._coco_api.numbers[image["image_id"]] for image in inputs]
        except KeyError as error:
            raise DatasetError(
                f"dataset {self._metadata.name!r}: an image has no image_id, or one that is not in "
                f"its annotations: {error}"
            ) from error
        self._predictions.append(tabulate(zip(images, to_detections(outputs), strict=True)))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the AP of all that was processed, see :func:`~smca.evaluation.evaluate.evaluate`;
        empty on all workers but the first.
        """
        parts = comm.gather(np.concatenate([tabulate([]), *self._predictions]))
        if not parts:
            return {}
        # The dataset's own loader may have another order of classes than the file.
        if labels := self._metadata.get("thing_dataset_id_to_contiguous_id"):
            names = self._metadata.thing_classes
            self._coco_api.dataset["categories"] = [
                {"id": category, "name": names[label]}
                for category, label in sorted(labels.items(), key=itemgetter(1))
            ]
        return evaluate(
            self._metadata.name,
            np.concatenate(parts),
            self._coco_api,
            self._output_dir,
            labels=self._labels,
            **self._options,
        )
