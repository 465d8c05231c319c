"""Small detectors whose detections differ, so that files of them can be compared."""

import torch
from fvcore.common.config import CfgNode

from smca.modeling import Detector, build_detector


def distinct_detector(cfg: CfgNode) -> Detector:
    """A detector with random weights that tell detections apart."""
    torch.manual_seed(0)
    detector = build_detector(cfg)
    for name, parameter in detector.named_parameters():
        if "norm" not in name and parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    for head in detector.heads.modules():
        if isinstance(head, torch.nn.Linear):
            head.weight.data *= 4
    return detector
