"""What a dataset holds, in numbers: images, and objects by size, class and shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..coco_format import box_fault

_SIZES = ("small", "medium", "large")


def coco_size(area: float) -> str:
    """COCO's name of an object's size, for its area in pixels."""
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def summarise(records: Sequence[dict], class_names: Sequence[str]) -> dict:
    """
    Objects are annotations with a box that can be used and no crowds. Sizes are by the areas of
    boxes.

    Args:
        records: see :mod:`smca.data.coco`.
        class_names: by contiguous index.

    Returns:
        numbers, and lists and dicts of them, as JSON has them.
    """
    sizes: list[Counter[str]] = [Counter() for _ in class_names]
    images: Counter[int] = Counter()
    objects, ratios = [], []
    for record in records:
        found = [
            entry
            for entry in record["annotations"]
            if not entry["iscrowd"]
            and not box_fault(entry["bbox"], record["height"], record["width"])
        ]
        objects.append(len(found))
        images.update({entry["category_id"] for entry in found})
        for entry in found:
            w, h = entry["bbox"][2:]
            sizes[entry["category_id"]][coco_size(w * h)] += 1
            ratios.append(w / h)
    total = sum(sizes, Counter())
    return {
        "images": len(records),
        "images_without_objects": objects.count(0),
        "objects": len(ratios),
        "crowds": sum(entry["iscrowd"] for r in records for entry in r["annotations"]),
        "sizes": {size: total[size] for size in _SIZES},
        "objects_per_image": _spread(objects),
        "image_widths": _spread([record["width"] for record in records]),
        "image_heights": _spread([record["height"] for record in records]),
        "width_by_height": _spread(ratios),
        "classes": [
            {
                "name": name,
                "images": images[index],
                "objects": sizes[index].total(),
                **{size: sizes[index][size] for size in _SIZES},
            }
            for index, name in enumerate(class_names)
        ],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "least": float(min(values)),
        "median": float(np.median(values)),
        "most": float(max(values)),
    }


def in_words(summary: dict) -> str:
    """A summary as lines of text, the last of them a table of the classes."""
    counts = ", ".join(f"{count} {size}" for size, count in summary["sizes"].items())
    lines = [
        f"{summary['images']} images ({summary['images_without_objects']} without objects), "
        f"{summary['objects']} objects: {counts}"
    ]
    for key in ("objects_per_image", "image_widths", "image_heights", "width_by_height"):
        if spread := summary[key]:
            numbers = " to ".join(f"{spread[which]:.4g}" for which in ("least", "most"))
            words = key.replace("_", " ")
            lines.append(f"  {words:<18}{numbers}, median {spread['median']:.4g}")
    columns = ("objects", "images", *_SIZES)
    width = max((len(entry["name"]) for entry in summary["classes"]), default=0)
    lines.append("  " + " " * width + "".join(f"{column:>9}" for column in columns))
    lines += [
        f"  {entry['name']:<{width}}" + "".join(f"{entry[column]:>9}" for column in columns)
        for entry in summary["classes"]
    ]
    return "\n".join(lines)
