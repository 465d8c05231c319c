"""Images with boxes at the edges of what can be, and the mappers of both hosts."""

import functools
import math

import numpy as np
from engines import HAS_DETECTRON2
from hypothesis import strategies as st
from PIL import Image

import smca
from smca.data.mapper import DetrMapper

HOSTS = ["native"] + ["detectron2"] * HAS_DETECTRON2
PLAIN = {"RANDOM_FLIP": "none", "MIN_SIZE_TRAIN": (0,), "FORMAT": "RGB"}

STRIPS = [(1, 1), (50, 4000), (4000, 50), (1, 4000), (4000, 1)]
SIZES = st.one_of(
    *[st.tuples(st.integers(1, 60), st.integers(1, 60))] * 12, st.sampled_from(STRIPS)
)
NUMBERS = st.one_of(
    st.floats(-80, 80),
    st.integers(-80, 80),
    st.sampled_from([0, -0.0, 1e-6, 1e-300, 0.5, 1e6, 1e9, -1e9, 1e30, -1e30]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)


@st.composite
def boxes_in(draw, height, width):
    """x, y, w, h: any numbers, or within, at a border of, or about as large as the image."""
    if draw(st.booleans()):
        return draw(st.lists(NUMBERS, min_size=4, max_size=4))
    box = []
    for side in (width, height):
        begin = draw(st.one_of(st.floats(0, side), st.sampled_from([0, side - 0.5, -side / 3])))
        length = draw(st.one_of(st.floats(0.02, side), st.sampled_from([side, 3 * side])))
        box.append((begin, length))
    (x, w), (y, h) = box
    return [x, y, w, h]


@st.composite
def annotated(draw, sizes=SIZES, most=8):
    """(height, width) and annotations, some twice."""
    height, width = draw(sizes)
    boxes = draw(st.lists(boxes_in(height, width), max_size=most))
    boxes += boxes[: draw(st.integers(0, 2))]
    return (height, width), [
        {
            "bbox": box,
            "bbox_mode": 1,
            "category_id": draw(st.integers(0, 2)),
            "iscrowd": int(draw(st.integers(0, 7)) == 0),
        }
        for box in boxes
    ]


class Folder:
    """Images of noise by size, in files."""

    def __init__(self, path):
        self.path = path

    def record(self, size, annotations=()):
        height, width = size
        path = self.path / f"{height}x{width}.bmp"
        if not path.exists():
            rng = np.random.default_rng(0)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        return {
            "file_name": str(path),
            "image_id": 7,
            "height": height,
            "width": width,
            "annotations": list(annotations),
        }


@functools.cache
def mapper_of(host, **inputs):
    """The mapper that a host trains with: a record -> image (3, h, w), labels, boxes."""
    changes = {**PLAIN, **inputs}
    opts = [part for key, value in changes.items() for part in (f"INPUT.{key}", value)]
    if host == "native":
        cfg = smca.get_cfg()
        cfg.merge_from_list(opts)
        native = DetrMapper.from_config(cfg, is_train=True)

        def mapped(record):
            sample = native(record)
            return sample.image, sample.labels, sample.boxes

    else:
        from detectron2.config import get_cfg

        from smca.d2 import DetrDatasetMapper, add_smca_config

        cfg = get_cfg()
        add_smca_config(cfg)
        cfg.merge_from_list(opts)
        detectron2 = DetrDatasetMapper(cfg, True)

        def mapped(record):
            sample = detectron2(record)
            instances = sample["instances"]
            return sample["image"], instances.gt_classes, instances.gt_boxes.tensor

    return mapped
