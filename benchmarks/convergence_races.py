"""The systems and the data sets of the convergence races."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from scenes import write_scenes
from tree_crowns import write_tree_crowns

from smca.data.shapes.drawing import SHAPES

_MODULATION = "MODEL.SMCA.MODULATION"
_DECODER = "MODEL.SMCA.DECODER.NAME"
_GROUPS = ["MODEL.SMCA.QUERY_GROUPS", "5"]
_MULTI_SCALE = [
    *("MODEL.SMCA.IN_FEATURES", "('res3', 'res4', 'res5')", "MODEL.SMCA.NUM_SCALES", "3"),
    *("MODEL.SMCA.ENCODER.BLOCKS", "('intra', 'multi')"),
]
_ANCHORS = [_DECODER, "AnchoredSMCADecoder"]
# As many noised objects an image as there are queries, at the most.
_DENOISING = ["MODEL.SMCA.DENOISING.ENABLED", "True", "MODEL.SMCA.DENOISING.NUMBER", "20"]
_LOSS = "MODEL.SMCA.LOSS"
_MAL = [f"{_LOSS}.CLASSIFICATION", "mal", f"{_LOSS}.CLASS_WEIGHT", "1.0"]
_IA_BCE = [f"{_LOSS}.CLASSIFICATION", "ia_bce", f"{_LOSS}.CLASS_WEIGHT", "1.0"]
# Each accelerator of docs/BEYOND.md on top of groups, and all together.
BEYOND: dict[str, tuple[str, list[str]]] = {
    "beyond-anchors": ("SMCA, 5 groups, anchors", [*_GROUPS, *_ANCHORS]),
    "beyond-denoising": (
        "SMCA, 5 groups, anchors, denoising",
        [*_GROUPS, *_ANCHORS, *_DENOISING],
    ),
    "beyond-mal": ("SMCA, 5 groups, MAL", [*_GROUPS, *_MAL]),
    "beyond-ia-bce": ("SMCA, 5 groups, IA-BCE", [*_GROUPS, *_IA_BCE]),
    "beyond-all": (
        "SMCA, 5 groups, anchors, denoising, MAL",
        [*_GROUPS, *_ANCHORS, *_DENOISING, *_MAL],
    ),
}
_TWO_STAGE = ["MODEL.SMCA.TWO_STAGE", "True"]
_ONE_TO_MANY = ["MODEL.SMCA.ONE_TO_MANY.ENABLED", "True"]
# Without groups, whose queries take time; each adds something to the one before.
PLUS: dict[str, tuple[str, list[str]]] = {
    "plus-two-stage": ("SMCA, anchors, two stages", [*_ANCHORS, *_TWO_STAGE]),
    "plus-denoising": (
        "SMCA, anchors, two stages, denoising",
        [*_ANCHORS, *_TWO_STAGE, *_DENOISING],
    ),
    "plus": ("SMCA+", [*_ANCHORS, *_TWO_STAGE, *_DENOISING, *_ONE_TO_MANY]),
}
# The title of each system, and the config values in which it differs from the recipe.
SYSTEMS: dict[str, tuple[str, list[str]]] = {
    "smca-groups": ("SMCA, 5 groups", _GROUPS),
    "smca-groups-short": ("SMCA, 5 groups, shorter", _GROUPS),
    "smca-3-groups-short": ("SMCA, 3 groups, shorter", ["MODEL.SMCA.QUERY_GROUPS", "3"]),
    "smca-multi-scale": ("SMCA, multi scale", _MULTI_SCALE),
    "smca-independent": ("SMCA, independent", []),
    "smca-single": ("SMCA, single", [f"{_MODULATION}.SCALE", "single"]),
    "smca-head-shared": ("SMCA, head-shared", [f"{_MODULATION}.HEADS", "shared"]),
    "smca-fixed": ("SMCA, fixed", [f"{_MODULATION}.SCALE", "fixed"]),
    "conditional-detr": ("Conditional DETR", [_DECODER, "ConditionalDecoder"]),
    "detr-groups": ("DETR, 5 groups", [_DECODER, "DETRDecoder", *_GROUPS]),
    "detr": ("DETR", [_DECODER, "DETRDecoder"]),
    **BEYOND,
    **PLUS,
}
TITLES = {name: title for name, (title, _) in SYSTEMS.items()}
# The systems of the picture in the README.
AT_A_GLANCE = ("detr", "conditional-detr", "smca-independent", "plus")


@dataclass(frozen=True)
class Race:
    """A data set and the systems that race on it.

    Attributes:
        write: writes the data set into a folder, unless it is there; scenes also take the numbers
            of images, ``num_train`` and ``num_val``.
        datasets: the names of the training and the validation set in the config.
        size: side of the images in pixels.
        iterations: of a run, by system; long enough that AP is flat once the learning rate has
            dropped. Since a rate that drops late favours a run's last fifth, systems named "short"
            and those of BEYOND have three fifths of the iterations of "smca-independent", and those
            of PLUS half of them.
        seeds: by system.
    """

    write: Callable[..., object]
    datasets: tuple[str, str]
    size: int
    iterations: Mapping[str, int]
    seeds: Mapping[str, tuple[int, ...]]


_ONE = dict.fromkeys(SYSTEMS, (0,))
_SHORT = ("smca-groups-short", "smca-3-groups-short", *BEYOND)
_THREE = (0, 1, 2)
_SHAPES = ("shapes_train", "shapes_val")
RACES = {
    "scenes": Race(
        partial(write_scenes, image_size=128),
        _SHAPES,
        size=128,
        iterations=dict.fromkeys(SYSTEMS, 8000)
        | dict.fromkeys(("conditional-detr", "detr-groups", "detr"), 16000)
        | dict.fromkeys(_SHORT, 4800)
        | dict.fromkeys(PLUS, 4000),
        seeds=_ONE
        | dict.fromkeys(("smca-groups-short", "smca-independent", "detr", "plus"), _THREE),
    ),
    "photographs": Race(
        write_tree_crowns,
        ("crowns_train", "crowns_val"),
        size=200,
        iterations=dict.fromkeys(SYSTEMS, 2400)
        | dict.fromkeys(_SHORT, 1440)
        | dict.fromkeys(PLUS, 1200),
        seeds=dict.fromkeys((*BEYOND, *PLUS), (0,))
        | dict.fromkeys(
            (
                *("smca-groups", "smca-groups-short", "smca-independent"),
                *("conditional-detr", "detr", "plus"),
            ),
            _THREE,
        ),
    ),
    "medium": Race(
        partial(write_scenes, image_size=512, names=tuple(SHAPES)),
        _SHAPES,
        size=512,
        iterations=dict.fromkeys(SYSTEMS, 24000),
        seeds={system: (0,) for system in SYSTEMS if not system.endswith("short")},
    ),
}
