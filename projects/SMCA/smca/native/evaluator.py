"""The evaluation of a detector on datasets."""

from collections.abc import Iterator

import numpy as np
from fvcore.common.config import CfgNode

from ..data.classes import dataset_labels
from ..data.coco import CocoDataset, load_datasets
from ..data.loader import build_test_loader
from ..data.mapper import DetrMapper
from ..distributed import gather
from ..evaluation.detections import results_folder, tabulate
from ..evaluation.evaluate import evaluate, read_ground_truth
from ..inference.detect import Inference
from ..modeling.detector import Detector
from ..structures import Detections


class Evaluator(Inference):
    """Evaluates a detector on ``datasets``, those of DATASETS.TEST, which it reads at once.

    Their classes are found in the detector by name, if it has ``class_names``.
    """

    def __init__(self, cfg: CfgNode, detector: Detector):
        super().__init__(cfg, detector)
        self.cfg = cfg
        self.datasets = load_datasets(cfg, cfg.DATASETS.TEST, needs_annotations=False)

    def __call__(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the AP on each dataset that has annotations, ``{dataset: {"bbox": {...}}}``;
        empty on all workers but the first.

        Raises:
            DatasetError: a dataset has no class of the detector.
        """
        results = {}
        known = self.detector.class_names or self.cfg.MODEL.SMCA.NUM_CLASSES
        for dataset in self.datasets:
            labels = dataset_labels(dataset.name, dataset.class_names, known)
            parts = gather(tabulate(self._detections(dataset)))
            if not parts:
                continue
            result = evaluate(
                dataset.name,
                np.concatenate(parts),
                read_ground_truth(dataset.name, dataset.json_file),
                results_folder(self.cfg, dataset.name),
                labels=labels,
                by_class=self.cfg.TEST.PER_CLASS_AP,
                max_dets_per_image=self.cfg.TEST.MAX_DETS_PER_IMAGE,
            )
            if result:
                results[dataset.name] = result
        return results

    def _detections(self, dataset: CocoDataset) -> Iterator[tuple[int, Detections]]:
        loader = build_test_loader(
            dataset=dataset.records,
            mapper=DetrMapper.from_config(self.cfg, is_train=False),
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )
        for batch in loader:
            sizes = [(sample.height, sample.width) for sample in batch]
            detections = self.detect([sample.image for sample in batch], sizes)
            for sample, found in zip(batch, detections, strict=True):
                yield sample.image_id, found
