"""Detectors to analyse, built by either host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..config import get_cfg, load_cfg, pretrains
from ..modeling.detector import build_detector
from ..modeling.parts import BaseDetector
from ..training import Targets, build_criterion

# Objects in each made-up training image.
NUM_OBJECTS = 8


class Subject(nn.Module):
    """A detector with its inference, which is the forward pass, and its loss.

    Attributes:
        model: module with the parameters; its user chooses training or evaluation mode.
        infer: maps images (B, 3, H, W) to the tensors of the result.
        loss: maps images (B, 3, H, W) to the loss for made-up objects, in training mode.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        infer: Callable[[Tensor], tuple[Tensor, ...]],
        loss: Callable[[Tensor], Tensor],
    ):
        super().__init__()
        self.model, self.infer, self.loss = model, infer, loss

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.infer(images)


@dataclass(frozen=True)
class Host:
    """A host's functions that read configs and build models; other processes can import them.

    Attributes:
        name: "native" or "detectron2".
        read: maps a config file and KEY VALUE options to a config.
        build: maps a config and a device to a subject. On "meta" parameters have no values.
    """

    name: str
    read: Callable[[str, Sequence[str]], CfgNode]
    build: Callable[[CfgNode, str], Subject]


def read(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read the config of a file, with changes."""
    return load_cfg(get_cfg(), config_file, opts)


def build(cfg: CfgNode, device: str) -> Subject:
    """Build one of the project's own detectors; see :func:`~smca.modeling.build_detector`."""
    with torch.device(device):
        detector = build_detector(uncompiled(cfg))
    return detector_subject(detector, cfg)


def uncompiled(cfg: CfgNode) -> CfgNode:
    """The config of the same model without compiling, because compiled code cannot be traced."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SMCA.COMPILE = False
    return cfg


def detector_subject(detector: BaseDetector, cfg: CfgNode) -> Subject:
    """The subject of a detector of either host."""
    criterion = build_criterion(cfg)

    def forward(images: Tensor, targets: Targets | None):
        # In a trace the sides are tensors.
        size = tuple(int(side) for side in images.shape[-2:])
        return detector.predict(images, [size] * len(images), targets)

    def infer(images: Tensor) -> tuple[Tensor, ...]:
        patches = made_up_targets(images, cfg) if pretrains(cfg) else None
        predictions = forward(images, patches)
        return predictions.logits, predictions.boxes

    def loss(images: Tensor) -> Tensor:
        targets = made_up_targets(images, cfg)
        return sum(criterion(forward(images, targets), targets).values())

    return Subject(model=detector, infer=infer, loss=loss)


def made_up_targets(images: Tensor, cfg: CfgNode) -> Targets:
    """Objects for images (B, 3, H, W), and patches to pre-train with where ``cfg`` does."""
    height, width = (int(side) for side in images.shape[-2:])
    smca, number, patches = cfg.MODEL.SMCA, NUM_OBJECTS, None
    if pretrains(cfg):
        number, side = smca.UP_DETR.NUM_PATCHES, smca.UP_DETR.PATCH_SIZE
        patches = images.new_zeros(len(images), number, 3, side, side)
    return Targets.from_images(
        [torch.arange(number) % smca.NUM_CLASSES] * len(images),
        [made_up_boxes(height, width, number)] * len(images),
        [(height, width)] * len(images),
        images.device,
        patches,
    )


def made_up_boxes(height: int, width: int, number: int = NUM_OBJECTS) -> Tensor:
    """Boxes along the diagonal of an image, (number, 4) xyxy in pixels."""
    start = torch.arange(number)[:, None] / (number + 1)
    corners = torch.cat((start, start, start + 0.1, start + 0.1), dim=1)
    return corners * torch.tensor([width, height, width, height])


NATIVE = Host(name="native", read=read, build=build)
