"""The evaluation of a detector on datasets."""

from collections.abc import Iterator

import numpy as np
from fvcore.common.config import CfgNode
from torch import nn

from ..data.coco import CocoDataset, load_datasets
from ..data.loader import build_test_loader
from ..data.mapper import DetrMapper
from ..distributed import gather
from ..evaluation.detections import results_folder, tabulate
from ..evaluation.evaluate import evaluate, read_ground_truth
from ..inference.detect import Inference
from ..structures import Detections


class Evaluator(Inference):
    """Evaluates a detector on ``datasets``, those of DATASETS.TEST, which it reads at once."""

    def __init__(self, cfg: CfgNode, detector: nn.Module):
        super().__init__(cfg, detector)
        self.cfg = cfg
        self.datasets = load_datasets(cfg, cfg.DATASETS.TEST, needs_annotations=False)

    def __call__(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the AP on each dataset that has annotations, ``{dataset: {"bbox": {...}}}``;
        empty on all workers but the first.
        """
        results = {}
        for dataset in self.datasets:
            parts = gather(tabulate(self._detections(dataset)))
            if not parts:
                continue
            result = evaluate(
                dataset.name,
                np.concatenate(parts),
                read_ground_truth(dataset.name, dataset.json_file),
                results_folder(self.cfg, dataset.name),
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
