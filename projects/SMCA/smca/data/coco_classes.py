"""COCO's classes: their ids, which leave numbers out, and their names."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

_UNUSED = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# The ids of the 80 classes, in the order of their contiguous indices.
COCO_IDS = tuple(number for number in range(91) if number not in _UNUSED)


def coco_class_names() -> tuple[str, ...]:
    """The names of COCO's classes, by contiguous index."""
    # torchvision has the names of the ids 0 to 90 with its weights.
    by_id = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(by_id[number] for number in COCO_IDS)
