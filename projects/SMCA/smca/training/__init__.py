"""Matching, loss, optimizer and the training step, in plain PyTorch."""

from ..structures import Targets
from .assigner import TopKAssigner
from .criterion import SetCriterion
from .matcher import HungarianMatcher, Matches

__all__ = ["HungarianMatcher", "Matches", "SetCriterion", "Targets", "TopKAssigner"]
