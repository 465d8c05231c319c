"""The kinds of findings in a dataset: how bad they are, and what to do about them."""

from dataclasses import dataclass
from functools import partial

from smca.data.coco import MANY_CROWDS as MANY

ERROR, WARNING, INFO = "ERROR", "WARNING", "INFO"

SLACK = 1.0  # pixels that a box may reach outside its image: annotators round
TINY = 2.0  # pixels

_TURN = "the lines of docs/CUSTOM_DATA.md about EXIF turn all boxes of a file"
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


_error = partial(Finding, ERROR)
_warning = partial(Finding, WARNING)
_info = partial(Finding, INFO)

FILE = _error("datasets that cannot be read", "correct the paths or the file")
FORMAT = _error(
    "entries that are not in COCO's format",
    "correct them: training stops at the first; the findings below leave them out",
)
MISSING = _error(
    "image files that do not exist",
    "correct file_name or the image folder, or take the entry out; evaluation needs every image",
)
UNREADABLE_FILE = _error(
    "image files that cannot be read", "replace them; evaluation needs every image"
)
RESIZED = _error(
    "images of another size than their entry says",
    "give the width and height that the image has, and check its boxes",
)
STORED = _error(
    "images whose entry has the size from before EXIF turns them",
    f"width, height and boxes must be those of the turned image: {_TURN}",
)
TURNED = _info(
    "images that EXIF turns",
    "look at them, the first in the picture of --output: some programs annotate an image as it is "
    f"stored; where boxes are beside their objects, {_TURN}",
)
GREY = _info(
    "grey images in files of 16 bits that use fewer",
    "nothing to do if INPUT.GREY_BITS is that of your brightest image; 0 finds it in a sample",
)
BEYOND = _warning("boxes larger than their image", f"{_BBOX}; was the image resized?")
PARTLY = _warning("boxes partly outside their image", f"{_BBOX}; training clips them to the image")
SMALL = _warning(
    f"boxes with a side under {TINY:.0f} pixels",
    f"{_BBOX}: fractions of the image's size must be multiplied by it",
)
DOUBLE = _warning("annotations with the image, class and box of another", "take one of them out")
STRAY = _warning("annotations of images that the file does not have", "they are not used")
SAME_FILE = _warning(
    "entries with the image file of another", "put all annotations of an image under one"
)
SAME_CONTENT = _warning("image files that are copies of another", "take one of them out")
UNNAMED = _warning(
    "images in the folder that no entry names",
    "they are not used; with an entry and no annotations they would teach what is background",
)
SAME_CLASS = _warning("class names of several categories", "tell them apart, or merge them")
UNUSED = _warning("classes without an object", "they can be neither learned nor evaluated here")
GAPS = _info("category ids with gaps", "nothing to do: they are kept in results")
ALL_CROWDS = _error(
    "images with crowds, as all annotations are",
    "training leaves out crowds: set iscrowd 0 where a box holds one object",
)
MANY_CROWDS = _warning(
    f"images with crowds, as more than {MANY:.0%} of the annotations are",
    "training leaves out crowds: set iscrowd 0 where a box holds one object",
)
CROWDS = _info(
    "images with crowds",
    "nothing to do: training leaves them out, and evaluation counts nothing inside",
)
UNSCORED = _info(
    "sets to evaluate on without annotations",
    "nothing to do: detections are written, and there is nothing to score with",
)
EMPTY = _info(
    "images without annotations",
    "with DATALOADER.FILTER_EMPTY_ANNOTATIONS False they are trained on, as background",
)
CLASSES = _error(
    "classes that differ",
    "give all training files the same 'categories', in any order, and no others to a test set",
)
FEWER = _info("classes of the training data that it lacks", "nothing to do: the others are scored")
NUM_CLASSES = _error(
    "classes that are not MODEL.SMCA.NUM_CLASSES",
    "set it to 0, as many as the data has, or to their number",
)
MORE = _warning(
    "images with more objects than MODEL.SMCA.NUM_QUERIES", "raise it: each query finds one object"
)
DENSE = _warning(
    "images with more objects of a class than TEST.MAX_DETS_PER_IMAGE",
    "raise it and TEST.DETECTIONS_PER_IMAGE: evaluation counts so many of the best detections of a "
    "class, and AP stays low",
)
LEAKED = _error(
    "images to evaluate on that are trained on", "take them out of one: AP would be too high"
)


def bad_boxes(fault: str) -> Finding:
    """Return the finding for a fault that :func:`smca.data.coco_format.box_fault` names."""
    return _error(
        f"boxes {fault}", f"{_BBOX}; training drops them, evaluation counts them as missed"
    )
