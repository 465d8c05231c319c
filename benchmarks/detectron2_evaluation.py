"""The work of an evaluation on Detectron2, for the evaluation benchmark."""

import contextlib
import io
from collections.abc import Callable, Iterable

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from smca.config import add_smca_config
from smca.d2.datasets import register_datasets
from smca.d2.evaluation import CocoEvaluator
from smca.data.coco import CocoDataset
from smca.structures import Detections


def evaluation(
    detections: Iterable[tuple[int, Detections]],
    dataset: CocoDataset,
    size: tuple[int, int],
    output_dir: str,
) -> Callable[[], dict[str, float]]:
    """Return a function that evaluates detections as Detectron2's models give them.

    Args:
        detections: image id and detections, image after image.
        dataset: the ground truth.
        size: (h, w) of all images in pixels.
        output_dir: folder of the results.
    """
    cfg = get_cfg()
    add_smca_config(cfg)
    cfg.DATASETS.COCO_FORMAT = [[dataset.name, dataset.json_file, dataset.image_root]]
    register_datasets(cfg)
    DatasetCatalog.get(dataset.name)
    instances = {
        image_id: Instances(
            size,
            pred_boxes=Boxes(found.boxes),
            scores=found.scores,
            pred_classes=found.labels,
        )
        for image_id, found in detections
    }

    def work() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = CocoEvaluator(dataset.name, output_dir=output_dir)
            evaluator.reset()
            for image_id, found in instances.items():
                evaluator.process([{"image_id": image_id}], [{"instances": found}])
            return evaluator.evaluate()["bbox"]

    return work
