"""The evaluation of a detector on datasets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from ..data.coco import CocoDataset, load_datasets
from ..distributed import gather
from ..evaluation.detections import results_folder, tabulate
from ..evaluation.evaluate import evaluate
from ..evaluation.ground_truth import read_ground_truth
from ..inference.detect import Inference
from ..structures import Detections
from .data import build_test_loader


def model_device(cfg: CfgNode) -> torch.device:
    """Return MODEL.DEVICE, among several GPUs the one of this worker."""
    if cfg.MODEL.DEVICE == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(cfg.MODEL.DEVICE)


class Evaluator(Inference):
    """Evaluates a detector on the datasets of DATASETS.TEST.

    Attributes:
        datasets: those of DATASETS.TEST.
    """

    def __init__(self, cfg: CfgNode, detector: nn.Module):
        """
        Args:
            cfg: the configuration.
            detector: on MODEL.DEVICE.

        Raises:
            DatasetError: see :func:`~smca.data.coco.load_datasets`.
        """
        super().__init__(cfg, detector)
        self.cfg = cfg
        self.datasets = load_datasets(cfg, cfg.DATASETS.TEST)

    def __call__(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the AP on each dataset, ``{dataset: {"bbox": {...}}}``; empty on all workers but
        the first.
        """
        results = {dataset.name: self._evaluate(dataset) for dataset in self.datasets}
        return {name: result for name, result in results.items() if result}

    def _evaluate(self, dataset: CocoDataset) -> dict[str, dict[str, float]]:
        parts = gather(tabulate(self._detections(dataset)))
        if not parts:
            return {}
        return evaluate(
            dataset.name,
            np.concatenate(parts),
            read_ground_truth(dataset.name, dataset.json_file),
            results_folder(self.cfg, dataset.name),
            by_class=self.cfg.TEST.PER_CLASS_AP,
        )

    def _detections(self, dataset: CocoDataset) -> Iterator[tuple[int, Detections]]:
        for batch in build_test_loader(self.cfg, dataset):
            sizes = [(sample.height, sample.width) for sample in batch]
            detections = self.detect([sample.image for sample in batch], sizes)
            for sample, found in zip(batch, detections, strict=True):
                yield sample.image_id, found
