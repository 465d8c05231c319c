"""The scalars that are logged beside the losses, and when."""

import pytest
import torch

from smca.checkpoints import SafeCheckpointing
from smca.engine.iterations import Iterations
from smca.engine.logs import is_logged
from smca.modeling import build_detector
from smca.training.solver import build_optimizer

BATCH = ("SOLVER.IMS_PER_BATCH", 8)


def scalars_of(cfg, num_images):
    detector = build_detector(cfg)
    optimizer = build_optimizer(cfg, detector)
    iterations = Iterations(cfg, detector, optimizer, SafeCheckpointing(detector), seed=0)
    iterations.num_images = num_images
    return detector, optimizer, iterations.scalars


def test_rates_and_epochs(tiny_config):
    cfg = tiny_config("SOLVER.BASE_LR", 0.4, *BATCH, "SOLVER.BACKBONE_MULTIPLIER", 0.25)
    _, optimizer, scalars = scalars_of(cfg, num_images=96)
    assert scalars(11) == pytest.approx({"epoch": 1, "lr": 0.4, "lr_backbone": 0.1})
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    assert scalars(17) == pytest.approx({"epoch": 1.5, "lr": 0.2, "lr_backbone": 0.05})


def test_parts_with_the_same_rate_are_told_once(tiny_config):
    _, _, scalars = scalars_of(tiny_config("SOLVER.BASE_LR", 0.4), num_images=0)
    assert scalars(0) == {"lr": 0.4}


def test_deformable_sampling(config):
    options = ["SOLVER.BACKBONE_MULTIPLIER", 0.5, "SOLVER.SAMPLING_MULTIPLIER", 0.25]
    cfg = config("baselines/deformable_detr_R50_50ep", "SOLVER.BASE_LR", 0.4, *options)
    with torch.device("meta"):
        _, _, scalars = scalars_of(cfg, num_images=cfg.SOLVER.IMS_PER_BATCH)
    rates = {"lr": 0.4, "lr_backbone": 0.2, "lr_sampling": 0.1}
    assert scalars(0) == pytest.approx({"epoch": 1, **rates})


def test_the_norm_is_that_before_clipping(tiny_config):
    cfg = tiny_config("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1)
    detector, optimizer, scalars = scalars_of(cfg, num_images=96)
    assert "grad_norm" not in scalars(0)
    for parameter in detector.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = torch.cat([p.grad.flatten() for p in detector.parameters()]).norm()
    optimizer.step()
    assert scalars(0)["grad_norm"] == pytest.approx(float(before), rel=1e-4)
    assert "grad_norm" not in optimizer.state_dict()
    # Of a step that float16 has lost; JSON has no number for it.
    detector.heads.class_head.bias.grad[0] = torch.inf
    optimizer.step()
    assert "grad_norm" not in scalars(1)


def test_unclipped_gradients_have_no_norm(tiny_config):
    cfg = tiny_config("SOLVER.CLIP_GRADIENTS.ENABLED", False)
    detector, optimizer, scalars = scalars_of(cfg, num_images=96)
    for parameter in detector.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert "grad_norm" not in scalars(0)


def test_lines_are_written_every_twenty_iterations_and_at_the_end():
    assert [i for i in range(50) if is_logged(i, 50)] == [19, 39, 49]
