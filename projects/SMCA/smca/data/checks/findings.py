"""What can be wrong with a dataset: how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

ERROR, WARNING, INFO = "ERROR", "WARNING", "INFO"

SLACK = 1.0  # pixels that a box may reach beyond its image: annotators round
TINY = 2.0  # pixels

_BBOX = "bbox is [x, y, width, height] in pixels of the image, from its upper left corner"


@dataclass(frozen=True)
class Problem:
    """A kind of finding.

    Attributes:
        level: ``ERROR``: training or evaluation stops, or goes wrong; ``WARNING``: they run, but
            perhaps not as meant; ``INFO``: good to know.
        what: names the entries that are so.
        remedy: what to do about them.
    """

    level: str
    what: str
    remedy: str


FILE = Problem(ERROR, "datasets that cannot be read", "correct the paths or the file")
FORMAT = Problem(
    ERROR,
    "entries that are not in COCO's format",
    "correct them: training stops at the first. They are left out of all that follows",
)
MISSING = Problem(
    ERROR,
    "image files that do not exist",
    "correct file_name or the image folder, or take the entry out; evaluation needs every image",
)
UNREADABLE_FILE = Problem(
    ERROR, "image files that cannot be read", "replace them; evaluation needs every image"
)
RESIZED = Problem(
    ERROR,
    "images of another size than their entry says",
    "give width and height as a viewer shows the image (EXIF may turn it), and check its boxes",
)
BEYOND = Problem(WARNING, "boxes larger than their image", f"{_BBOX}; was the image resized?")
PARTLY = Problem(
    WARNING, "boxes partly outside their image", f"{_BBOX}; training clips them to the image"
)
SMALL = Problem(
    WARNING,
    f"boxes with a side under {TINY:.0f} pixels",
    f"{_BBOX}: fractions of the image's size must be multiplied by it",
)
DOUBLE = Problem(
    WARNING, "annotations with the image, class and box of another", "take one of them out"
)
STRAY = Problem(
    WARNING, "annotations of images that the file does not have", "they are passed over"
)
SAME_FILE = Problem(
    WARNING, "entries with the image file of another", "put all annotations of an image under one"
)
SAME_CONTENT = Problem(WARNING, "image files that are copies of another", "take one of them out")
UNNAMED = Problem(
    WARNING,
    "images in the folder that no entry names",
    "they are not used; with an entry and no annotations they would teach what is background",
)
SAME_CLASS = Problem(WARNING, "class names of several categories", "tell them apart, or merge them")
UNUSED = Problem(
    WARNING, "classes without an object", "nothing of them can be learned here, or evaluated"
)
GAPS = Problem(INFO, "category ids with gaps", "nothing to do: they are kept in results")
CROWDS = Problem(
    INFO,
    "images with crowds",
    "nothing to do: training leaves them out, and evaluation counts nothing inside",
)
EMPTY = Problem(
    INFO,
    "images without annotations",
    "with DATALOADER.FILTER_EMPTY_ANNOTATIONS False they are trained on, as background",
)
CLASSES = Problem(ERROR, "classes that differ", "give all files the same 'categories'")
NUM_CLASSES = Problem(
    ERROR,
    "classes that are not MODEL.SMCA.NUM_CLASSES",
    "set it to 0, as many as the data has, or to their number",
)
LEAKED = Problem(
    ERROR, "images to evaluate on that are trained on", "take them out of one: AP would be too high"
)


def bad_boxes(fault: str) -> Problem:
    """For what :func:`smca.data.coco_format.box_fault` says."""
    return Problem(
        ERROR, f"boxes {fault}", f"{_BBOX}; training drops them, evaluation counts them as missed"
    )


def more_than(num_queries: int) -> Problem:
    """For images with more objects than queries."""
    return Problem(
        WARNING,
        f"images with more objects than {num_queries} queries can find",
        "raise MODEL.SMCA.NUM_QUERIES: each finds one",
    )
