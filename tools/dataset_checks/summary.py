"""Statistics of a dataset: its images, and its objects by size, class and shape."""

from collections.abc import Sequence

import numpy as np

from smca.data.coco_format import box_fault

# COCO's names of areas below 32 x 32 pixels, below 96 x 96, and others.
_SIZES = ("small", "medium", "large")
_LIMITS = (32**2, 96**2)
_SPREADS = ("objects_per_image", "image_widths", "image_heights", "width_by_height")


def summarise(records: Sequence[dict], class_names: Sequence[str]) -> dict:
    """Return a dataset's statistics as a dict that can be written as JSON.

    Objects are the annotations with a usable box, without crowds. Their sizes are by the areas of
    the boxes.

    Args:
        records: see :mod:`smca.data.coco`.
        class_names: by contiguous index.
    """
    found = [
        (image, entry["category_id"], *entry["bbox"][2:])
        for image, record in enumerate(records)
        for entry in record["annotations"]
        if not entry["iscrowd"] and not box_fault(entry["bbox"], record["height"], record["width"])
    ]
    image, label, w, h = np.array(found, dtype=float).reshape(-1, 4).T
    size = np.digitize(w * h, _LIMITS)
    counts = [np.bincount(size[label == index], minlength=3) for index in range(len(class_names))]
    objects = np.bincount(image.astype(int), minlength=len(records))
    widths, heights = ([record[side] for record in records] for side in ("width", "height"))
    spreads = zip(_SPREADS, (objects, widths, heights, w / h), strict=True)
    return {
        "images": len(records),
        "images_without_objects": int((objects == 0).sum()),
        "objects": len(found),
        "crowds": sum(entry["iscrowd"] for r in records for entry in r["annotations"]),
        "sizes": _by_size(np.bincount(size, minlength=3)),
        **{key: _spread(values) for key, values in spreads},
        "classes": [
            {
                "name": name,
                "images": len(set(image[label == index])),
                "objects": int(counts[index].sum()),
                **_by_size(counts[index]),
            }
            for index, name in enumerate(class_names)
        ],
    }


def _by_size(counts: np.ndarray) -> dict[str, int]:
    return dict(zip(_SIZES, counts.tolist(), strict=True))


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not len(values):
        return {}
    least, median, most = (float(f(values)) for f in (np.min, np.median, np.max))
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
