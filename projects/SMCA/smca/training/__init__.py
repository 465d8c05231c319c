"""Matching, loss, optimizer and the training step, in plain PyTorch."""

from .criterion import SetCriterion
from .matcher import HungarianMatcher, Matches, Targets

__all__ = ["HungarianMatcher", "Matches", "SetCriterion", "Targets"]
