"""Checkpoint files: safe to read, whole when written, with Detectron2's names."""

from .best import BestModel
from .files import CheckpointError, read_checkpoint, write_checkpoint
from .loading import SafeCheckpointing, load

__all__ = [
    "BestModel",
    "CheckpointError",
    "SafeCheckpointing",
    "load",
    "read_checkpoint",
    "write_checkpoint",
]
