"""Matching, loss, optimizer and the training step, in plain PyTorch."""

from fvcore.common.config import CfgNode

from ..config import is_tsp
from ..structures import Targets
from .assigner import TopKAssigner
from .criterion import SetCriterion
from .matcher import HungarianMatcher, Matches
from .tsp_criterion import TSPCriterion

__all__ = [
    "HungarianMatcher",
    "Matches",
    "SetCriterion",
    "TSPCriterion",
    "Targets",
    "TopKAssigner",
    "build_criterion",
]


def build_criterion(cfg: CfgNode) -> SetCriterion | TSPCriterion:
    """Build the loss of a config's model."""
    if is_tsp(cfg):
        return TSPCriterion(**TSPCriterion.from_config(cfg))
    return SetCriterion(**SetCriterion.from_config(cfg))
