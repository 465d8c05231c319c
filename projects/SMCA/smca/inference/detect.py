"""Running one of the project's detectors over images."""

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode
from iopath.common.file_io import PathManager
from torch import Tensor, nn

from ..config import get_cfg, load_cfg
from ..modeling.detector import build_detector, pad_images, pixel_statistics, stack_patches
from ..modeling.heads import detect
from ..structures import Detections, Size


class Inference:
    """Runs a detector of the project in evaluation mode; the native host of a predictor.

    Attributes:
        detector: the detector. It stays in the mode that it is in.
        path_manager: fetches checkpoints from addresses that the project itself does not know.
    """

    path_manager = PathManager()

    def __init__(self, cfg: CfgNode, detector: nn.Module | None = None):
        """
        Args:
            detector: a detector on its device; by default a new one on MODEL.DEVICE, in evaluation
                mode.

        Raises:
            ConfigError: a new detector needs Detectron2, or a value of the config cannot work.
        """
        if detector is None:
            detector = build_detector(cfg).to(cfg.MODEL.DEVICE).eval()
        self.detector = detector
        device = next(detector.parameters()).device
        self.mean, self.std = (part.to(device) for part in pixel_statistics(cfg))
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self.softmax = cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"

    @staticmethod
    def read(config: str | CfgNode, *, to_train: bool = True) -> CfgNode:
        """The config of a file, see :func:`~smca.config.load_cfg`, or a copy of a config."""
        if isinstance(config, CfgNode):
            return config.clone()
        return load_cfg(get_cfg(), config, to_train=to_train)

    def pad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        """The detector's input for images (3, h, w) in 0..255; see :func:`pad_images`."""
        return pad_images(images, mean=self.mean, std=self.std)

    def stack_patches(self, patches: Sequence[Tensor | None]) -> Tensor | None:
        """The detector's input for the patches of images; see :func:`stack_patches`."""
        return stack_patches(patches, mean=self.mean, std=self.std)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], output_sizes: Sequence[Size]) -> list[Detections]:
        """The detections in each image of a batch, on the CPU.

        Args:
            images: (3, h, w) each, pixels in 0..255.
            output_sizes: (h, w) that the boxes of each image are scaled to.
        """
        training = self.detector.training
        self.detector.eval()
        try:
            predictions = self.detector(*self.pad(images))
        finally:
            self.detector.train(training)
        detections = detect(
            predictions, output_sizes, max_detections=self.max_detections, softmax=self.softmax
        )
        return [
            Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())
            for found in detections
        ]
