"""Running a detector over datasets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import nn

from .. import distributed
from ..data.coco import CocoDataset, load_datasets, results_folder
from ..evaluation.native import evaluate
from ..evaluation.scoring import tabulate
from ..inference.detect import Inference, evaluating
from ..structures import Detections
from .data import build_test_loader


def model_device(cfg: CfgNode) -> torch.device:
    """MODEL.DEVICE; of several GPUs this worker's."""
    if cfg.MODEL.DEVICE == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(cfg.MODEL.DEVICE)


class Evaluator(Inference):
    """Runs a detector over the datasets of DATASETS.TEST.

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
        """AP of each dataset, ``{dataset: {"bbox": {...}}}``; empty on all but the first worker."""
        with evaluating(self.detector):
            results = {dataset.name: self._evaluate(dataset) for dataset in self.datasets}
        return {name: result for name, result in results.items() if result}

    def _evaluate(self, dataset: CocoDataset) -> dict[str, dict[str, float]]:
        found = tabulate(self._detections(dataset))
        if distributed.world_size() > 1:
            first = distributed.rank() == 0
            gathered = [None] * distributed.world_size() if first else None
            dist.gather_object(found, gathered)
            if not first:
                return {}
            found = np.concatenate(gathered)
        folder = results_folder(self.cfg, dataset.name)
        return evaluate(found, dataset, folder, by_class=self.cfg.TEST.PER_CLASS_AP)

    def _detections(self, dataset: CocoDataset) -> Iterator[tuple[int, Detections]]:
        for batch in build_test_loader(self.cfg, dataset):
            sizes = [(sample.height, sample.width) for sample in batch]
            detections = self.detect([sample.image for sample in batch], sizes)
            for sample, found in zip(batch, detections, strict=True):
                yield sample.image_id, found
