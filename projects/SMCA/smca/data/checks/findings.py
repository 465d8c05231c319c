"""The kinds of findings in a dataset: how bad they are, and what to do about them."""

from __future__ import annotations

from dataclasses import dataclass

ERROR, WARNING, INFO = "ERROR", "WARNING", "INFO"

SLACK = 1.0  # pixels that a box may reach outside its image: annotators round
TINY = 2.0  # pixels

_BBOX = "bbox is [x, y, width, height] in pixels of the image, from its upper left corner"


@dataclass(frozen=True)
class Finding:
    """A kind of finding.

    Attributes:
        level: ``ERROR``: training or evaluation stops, or goes wrong; ``WARNING``: they run, but
            perhaps not as meant; ``INFO``: good to know.
        what: what the entries are that have it.
        remedy: what to do about them.
    """

    level: str
    what: str
    remedy: str


FILE = Finding(ERROR, "datasets that cannot be read", "correct the paths or the file")
FORMAT = Finding(
    ERROR,
    "entries that are not in COCO's format",
    "correct them: training stops at the first; the findings below leave them out",
)
MISSING = Finding(
    ERROR,
    "image files that do not exist",
    "correct file_name or the image folder, or take the entry out; evaluation needs every image",
)
UNREADABLE_FILE = Finding(
    ERROR, "image files that cannot be read", "replace them; evaluation needs every image"
)
RESIZED = Finding(
    ERROR,
    "images of another size than their entry says",
    "give width and height as a viewer shows the image (EXIF may turn it), and check its boxes",
)
BEYOND = Finding(WARNING, "boxes larger than their image", f"{_BBOX}; was the image resized?")
PARTLY = Finding(
    WARNING, "boxes partly outside their image", f"{_BBOX}; training clips them to the image"
)
SMALL = Finding(
    WARNING,
    f"boxes with a side under {TINY:.0f} pixels",
    f"{_BBOX}: fractions of the image's size must be multiplied by it",
)
DOUBLE = Finding(
    WARNING, "annotations with the image, class and box of another", "take one of them out"
)
STRAY = Finding(WARNING, "annotations of images that the file does not have", "they are not used")
SAME_FILE = Finding(
    WARNING, "entries with the image file of another", "put all annotations of an image under one"
)
SAME_CONTENT = Finding(WARNING, "image files that are copies of another", "take one of them out")
UNNAMED = Finding(
    WARNING,
    "images in the folder that no entry names",
    "they are not used; with an entry and no annotations they would teach what is background",
)
SAME_CLASS = Finding(WARNING, "class names of several categories", "tell them apart, or merge them")
UNUSED = Finding(
    WARNING, "classes without an object", "they can be neither learned nor evaluated here"
)
GAPS = Finding(INFO, "category ids with gaps", "nothing to do: they are kept in results")
CROWDS = Finding(
    INFO,
    "images with crowds",
    "nothing to do: training leaves them out, and evaluation counts nothing inside",
)
EMPTY = Finding(
    INFO,
    "images without annotations",
    "with DATALOADER.FILTER_EMPTY_ANNOTATIONS False they are trained on, as background",
)
CLASSES = Finding(ERROR, "classes that differ", "give all files the same 'categories'")
NUM_CLASSES = Finding(
    ERROR,
    "classes that are not MODEL.SMCA.NUM_CLASSES",
    "set it to 0, as many as the data has, or to their number",
)
LEAKED = Finding(
    ERROR, "images to evaluate on that are trained on", "take them out of one: AP would be too high"
)


def bad_boxes(fault: str) -> Finding:
    """Return the finding for a fault that :func:`smca.data.coco_format.box_fault` names."""
    return Finding(
        ERROR, f"boxes {fault}", f"{_BBOX}; training drops them, evaluation counts them as missed"
    )


def more_than(num_queries: int) -> Finding:
    """Return the finding for images with more objects than queries."""
    return Finding(
        WARNING,
        f"images with more objects than {num_queries} queries can find",
        "raise MODEL.SMCA.NUM_QUERIES: each finds one",
    )
