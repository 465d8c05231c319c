"""Checkpoint files: read without running code, written whole, under Detectron2's names."""

from ..errors import CheckpointError
from .checkpointer import BestModel, SafeCheckpointing
from .fetching import fetch
from .files import read_checkpoint, write_checkpoint
from .loading import load, load_state, pop_weights

__all__ = [
    "BestModel",
    "CheckpointError",
    "SafeCheckpointing",
    "fetch",
    "load",
    "load_state",
    "pop_weights",
    "read_checkpoint",
    "write_checkpoint",
]
