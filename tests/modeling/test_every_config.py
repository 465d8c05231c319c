"""Every model of configs/, made narrow, takes a training step and detects."""

from pathlib import Path

import pytest
import torch

import smca
from smca.config import is_own_model, is_tsp, load_cfg, pretrains
from smca.modeling import build_detector, detect
from smca.training import Targets, build_criterion
from smca.training.solver import build_optimizer

CONFIGS = Path(__file__).parents[2] / "configs"
NARROW = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.SMCA.HIDDEN_DIM", 32, "MODEL.SMCA.NHEADS", 4),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 32, "MODEL.SMCA.NUM_CLASSES", 3, "MODEL.SMCA.NUM_QUERIES", 7),
]


def models():
    """One config of each model; those that differ in their schedule only count once."""
    found = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        cfg = load_cfg(smca.get_cfg(), str(path), NARROW)
        # A ResNet-101 has blocks of the same kind.
        cfg.MODEL.RESNETS.DEPTH = min(cfg.MODEL.RESNETS.DEPTH, 50)
        if is_own_model(cfg) and not pretrains(cfg) and not path.stem.startswith("Base-"):
            found.setdefault(cfg.MODEL.dump(), (path.stem, cfg))
    return found.values()


@pytest.mark.parametrize("cfg", [pytest.param(cfg, id=name) for name, cfg in models()])
def test_it_trains_and_detects(cfg):
    torch.manual_seed(0)
    detector = build_detector(cfg).train()
    optimizer = build_optimizer(cfg, detector)
    images, sizes = torch.randn(2, 3, 96, 128), [(96, 128), (90, 100)]
    boxes = torch.tensor([[10.0, 20, 60, 70], [30, 30, 90, 80]])
    targets = Targets.from_images(
        [torch.tensor([0, 2])] * 2, [boxes] * 2, sizes, torch.device("cpu")
    )
    predictions = detector(images, sizes, targets)
    layers = 1 if is_tsp(cfg) else cfg.MODEL.SMCA.DECODER.NUM_LAYERS
    assert predictions.logits.shape[0] == layers
    losses = build_criterion(cfg)(predictions, targets)
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    sum(losses.values()).backward()
    optimizer.step()
    moved = [name for name, p in detector.named_parameters() if not p.equal(before[name])]
    assert len(moved) > 0.9 * sum(p.requires_grad for p in detector.parameters())
    assert all(p.isfinite().all() for p in detector.parameters())

    with torch.no_grad():
        predictions = detector.eval()(images, sizes)
    softmax = cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"
    for image in detect(predictions, sizes, max_detections=9, softmax=softmax):
        assert len(image.boxes) == (7 if softmax else 9)
        assert image.boxes.isfinite().all() and image.labels.max() < 3
