"""A detector whose numbers are told apart and compared exactly."""

import torch

from smca.modeling import build_detector
from smca.training import SetCriterion


def exact_detector(cfg):
    """A detector in float64 and its criterion; its boxes differ from where they start."""
    torch.manual_seed(0)
    detector = build_detector(cfg).double()
    for name, parameter in sorted(detector.named_parameters()):
        if "box_head" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return detector.train(), SetCriterion(**SetCriterion.from_config(cfg))
