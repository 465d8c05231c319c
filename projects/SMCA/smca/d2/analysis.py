"""Build and evaluate models of Detectron2 for :mod:`smca.analysis` and the benchmarks."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..analysis.host import Host, Subject, detector_subject, made_up_boxes, uncompiled
from ..config import add_smca_config, load_cfg
from ..data.coco import CocoDataset
from ..modeling.detector import Detector
from ..structures import Detections
from .datasets import register_datasets
from .evaluation import CocoEvaluator


def read(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file, with changes."""
    cfg = get_cfg()
    add_smca_config(cfg)
    return load_cfg(cfg, config_file, opts)


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
    if isinstance(model, Detector):
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


DETECTRON2 = Host(name="detectron2", read=read, build=build)
