"""A dataset of drawn shapes in COCO's format, so that everything runs without a download."""

from .dataset import QUICKSTART, SPLITS, missing_shapes, write_shapes_dataset

__all__ = ["QUICKSTART", "SPLITS", "missing_shapes", "write_shapes_dataset"]
