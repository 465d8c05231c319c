"""Detectron2's checkpointer, safe: whole files, no code from pickles, clear refusals."""

from __future__ import annotations

from detectron2.checkpoint import DetectionCheckpointer

from ..checkpoints import SafeCheckpointing


class SMCACheckpointer(SafeCheckpointing, DetectionCheckpointer):
    """Reads this project's checkpoints, torchvision's and those of Detectron2's model zoo.

    Paths may be any of Detectron2's, such as ``detectron2://...``.
    """
