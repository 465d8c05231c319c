"""Detectron2's checkpointer with whole files, safe reading and clear refusals."""

from detectron2.checkpoint import DetectionCheckpointer

from ..checkpoints import SafeCheckpointing


class SMCACheckpointer(SafeCheckpointing, DetectionCheckpointer):
    """Reads checkpoints of this project, of torchvision and of Detectron2's model zoo.

    Paths may be any that Detectron2 knows, such as ``detectron2://...``.
    """
