"""Statistics of a dataset: its images, and its objects by size, class and shape."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..coco_format import box_fault

_SIZES = ("small", "medium", "large")
_SPREADS = ("objects_per_image", "image_widths", "image_heights", "width_by_height")


def coco_size(area: float) -> str:
    """Return COCO's name for the size of an object with this area in pixels."""
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def summarise(records: Sequence[dict], class_names: Sequence[str]) -> dict:
    """Return a dataset's statistics as a dict that can be written as JSON.

    Objects are the annotations with a usable box, without crowds. Their sizes are by the areas of
    the boxes.

    Args:
        records: see :mod:`smca.data.coco`.
        class_names: by contiguous index.
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
    spreads = (objects, [r["width"] for r in records], [r["height"] for r in records], ratios)
    total = sum(sizes, Counter())
    return {
        "images": len(records),
        "images_without_objects": objects.count(0),
        "objects": len(ratios),
        "crowds": sum(entry["iscrowd"] for r in records for entry in r["annotations"]),
        "sizes": {size: total[size] for size in _SIZES},
        **{key: _spread(values) for key, values in zip(_SPREADS, spreads, strict=True)},
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
    least, median, most = (float(f(values)) for f in (min, np.median, max))
    return {"least": least, "median": median, "most": most}


def format_summary(summary: dict) -> str:
    """Return a summary as lines of text, the last of which are a table of the classes."""
    counts = ", ".join(f"{count} {size}" for size, count in summary["sizes"].items())
    lines = [
        f"{summary['images']} images ({summary['images_without_objects']} without objects), "
        f"{summary['objects']} objects: {counts}"
    ]
    for key in _SPREADS:
        if spread := summary[key]:
            words, (least, median, most) = key.replace("_", " "), spread.values()
            lines.append(f"  {words:<18}{least:.4g} to {most:.4g}, median {median:.4g}")
    columns = ("objects", "images", *_SIZES)
    width = max((len(entry["name"]) for entry in summary["classes"]), default=0)
    lines.append("  " + " " * width + "".join(f"{column:>9}" for column in columns))
    lines += [
        f"  {entry['name']:<{width}}" + "".join(f"{entry[column]:>9}" for column in columns)
        for entry in summary["classes"]
    ]
    return "\n".join(lines)
