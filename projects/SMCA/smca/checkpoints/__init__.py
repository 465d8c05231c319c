"""Checkpoint files: safe to read, whole when written, with Detectron2's names."""

from .best import BestModel
from .files import CheckpointError, read_checkpoint, write_checkpoint
from .loading import SafeCheckpointing, load, load_state, pop_weights

__all__ = [
    "BestModel",
    "CheckpointError",
    "SafeCheckpointing",
    "load",
    "load_state",
    "pop_weights",
    "read_checkpoint",
    "write_checkpoint",
]
