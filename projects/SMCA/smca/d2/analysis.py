"""Build and evaluate models of Detectron2 for :mod:`smca.analysis` and the benchmarks."""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..analysis.host import Host, Subject, detector_subject, made_up_boxes, uncompiled
from ..config import load_cfg
from ..modeling.parts import BaseDetector
from .predictor import Detectron2Host


def read(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file, with changes."""
    return load_cfg(Detectron2Host.read(config_file), opts=opts)


def build(cfg: CfgNode, device: str) -> Subject:
    """Any detector of Detectron2.

    One with region proposals always has as many as its config allows, as a trained one has:
    untrained weights would propose one box many times over.
    """
    cfg = uncompiled(cfg)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.RPN.NMS_THRESH = 1.0
    # That tracing means two things is no news.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    with torch.device(device):
        model = build_model(cfg)
    if isinstance(model, BaseDetector):
        return detector_subject(model, cfg)
    for name, module in model.named_modules():
        if name.endswith(("rpn_head.objectness_logits", "rpn_head.anchor_deltas")):
            nn.init.zeros_(module.weight)

    def infer(images: Tensor) -> tuple[Tensor, ...]:
        found = [image["instances"] for image in model([{"image": image} for image in images])]
        return tuple(
            tensor for image in found for tensor in (image.pred_boxes.tensor, image.scores)
        )

    def loss(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        boxes = made_up_boxes(height, width)
        objects = Instances(
            (height, width),
            gt_boxes=Boxes(boxes.to(images.device)),
            gt_classes=torch.zeros(len(boxes), dtype=torch.int64, device=images.device),
        )
        with EventStorage():
            losses = model([{"image": image, "instances": objects} for image in images])
        return sum(losses.values())

    return Subject(model=model, infer=infer, loss=loss)


DETECTRON2 = Host(name="detectron2", read=read, build=build)
