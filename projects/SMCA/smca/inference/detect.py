"""Running a detector over images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..modeling.detector import pad_images, pixel_statistics
from ..modeling.heads import detect
from ..structures import Detections, Size


class Inference:
    """Runs a detector of the project in evaluation mode.

    Attributes:
        detector: may be in training; its mode stays as it was.
    """

    def __init__(self, cfg: CfgNode, detector: nn.Module):
        """
        Args:
            cfg: the configuration.
            detector: on the device that it is to run on.
        """
        self.detector = detector
        device = next(detector.parameters()).device
        self.mean, self.std = (part.to(device) for part in pixel_statistics(cfg))
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self.softmax = cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"

    def pad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        """Images (3, h, w) in 0..255 as the detector takes them, see :func:`pad_images`."""
        return pad_images(images, mean=self.mean, std=self.std)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], output_sizes: Sequence[Size]) -> list[Detections]:
        """What is found in a batch of images, on the host.

        Args:
            images: (3, h, w) each, pixels in 0..255.
            output_sizes: (h, w) to scale the boxes to, an image each.
        """
        with evaluating(self.detector):
            predictions = self.detector(*self.pad(images))
        detections = detect(
            predictions, output_sizes, max_detections=self.max_detections, softmax=self.softmax
        )
        return [
            Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())
            for found in detections
        ]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and then as it was."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
