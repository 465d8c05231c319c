"""Running a detector over images and datasets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..data.coco import CocoDataset, load_datasets, results_folder
from ..modeling.detector import pad_images, pixel_statistics
from ..modeling.heads import Detections, detect
from ..modeling.memory import Size
from . import distributed
from .data import build_test_loader
from .evaluation import evaluate


def model_device(cfg: CfgNode) -> torch.device:
    """MODEL.DEVICE; of several GPUs this worker's."""
    if cfg.MODEL.DEVICE == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(cfg.MODEL.DEVICE)


class Evaluator:
    """Runs a detector, in evaluation mode, over the datasets of DATASETS.TEST.

    Attributes:
        detector: may be in training; its mode stays as it was.
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
        self.cfg = cfg
        self.detector = detector
        self.mean, self.std = (part.to(model_device(cfg)) for part in pixel_statistics(cfg))
        self.datasets = load_datasets(cfg, cfg.DATASETS.TEST)

    def __call__(self) -> dict[str, dict[str, dict[str, float]]]:
        """AP of each dataset, ``{dataset: {"bbox": {...}}}``; empty on all but the first worker."""
        with _evaluating(self.detector):
            results = {dataset.name: self._evaluate(dataset) for dataset in self.datasets}
        return {name: result for name, result in results.items() if result}

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], output_sizes: Sequence[Size]) -> list[Detections]:
        """What is found in a batch of images, on the host.

        Args:
            images: (3, h, w) each, pixels in 0..255.
            output_sizes: (h, w) to scale the boxes to, an image each.
        """
        with _evaluating(self.detector):
            predictions = self.detector(*pad_images(images, mean=self.mean, std=self.std))
        detections = detect(
            predictions,
            output_sizes,
            max_detections=self.cfg.TEST.DETECTIONS_PER_IMAGE,
            softmax=self.cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax",
        )
        return [
            Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())
            for found in detections
        ]

    def _evaluate(self, dataset: CocoDataset) -> dict[str, dict[str, float]]:
        found = self._detections(dataset)
        if distributed.world_size() > 1:
            first = distributed.rank() == 0
            gathered = [None] * distributed.world_size() if first else None
            dist.gather_object(list(found), gathered)
            if not first:
                return {}
            found = [detection for worker in gathered for detection in worker]
        folder = results_folder(self.cfg, dataset.name)
        return evaluate(found, dataset, folder, by_class=self.cfg.TEST.PER_CLASS_AP)

    def _detections(self, dataset: CocoDataset) -> Iterator[tuple[int, Detections]]:
        rank, world_size = distributed.rank(), distributed.world_size()
        for batch in build_test_loader(self.cfg, dataset, rank=rank, world_size=world_size):
            sizes = [(sample.height, sample.width) for sample in batch]
            detections = self.detect([sample.image for sample in batch], sizes)
            for sample, found in zip(batch, detections, strict=True):
                yield sample.image_id, found


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and then as it was."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
