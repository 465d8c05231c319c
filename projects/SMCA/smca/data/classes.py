"""Compare classes by their names: those of a model, of its training data and of a test set."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from fvcore.common.config import CfgNode

from ..config import is_own_model
from ..errors import DatasetError

logger = logging.getLogger(__name__)


def shown(names: Sequence[str]) -> str:
    """Join the names, or the first 20 of many, for a message."""
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names, those that repeat an earlier one with a number."""
    taken: dict[str, None] = {}
    for name in names:
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name} ({number})"
        taken[unique] = None
    return list(taken)


def positions(names: Sequence[str], among: Sequence[str]) -> np.ndarray:
    """Return where each of ``names`` stands ``among`` other names; -1 where it does not."""
    places = {name: place for place, name in enumerate(distinct(among))}
    return np.array([places.get(name, -1) for name in distinct(names)], dtype=np.int64)


def lacking(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """Return those of ``names`` that are not ``among`` other names."""
    return [name for name, place in zip(names, positions(names, among), strict=True) if place < 0]


def num_classes(cfg: CfgNode) -> int:
    """Return the number of classes that a config gives its model."""
    return cfg.MODEL[_group(cfg)].NUM_CLASSES


def _group(cfg: CfgNode) -> str:
    name = cfg.MODEL.META_ARCHITECTURE
    # Detectron2's own models keep their number of classes with their heads.
    group = "RETINANET" if name == "RetinaNet" else "ROI_HEADS"
    return group if not is_own_model(cfg) and group in cfg.MODEL else "SMCA"


def check_count(cfg: CfgNode, dataset: str, names: Sequence[str]) -> None:
    """Raise DatasetError unless the model has as many classes as the dataset to train on."""
    if len(names) != num_classes(cfg):
        group = _group(cfg)
        remedy = ", or to 0 to have it counted" if group == "SMCA" else ""
        raise DatasetError(
            f"MODEL.{group}.NUM_CLASSES is {num_classes(cfg)}, but dataset {dataset!r} "
            f"has {len(names)} classes ({shown(names)}); set it to {len(names)}{remedy}"
        )


def training_labels(classes: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Return what each label of the datasets to train on is in the model, by the class's name.

    The model has the classes of the first dataset, in its order.

    Args:
        classes: the class names of each dataset, by contiguous index.

    Raises:
        DatasetError: they are not the same in all datasets.
    """
    first = next(iter(classes), "")
    for name in classes:
        for one, other in ((name, first), (first, name)):
            if absent := lacking(classes[other], classes[one]):
                raise DatasetError(
                    f"dataset {one!r} lacks the classes {shown(absent)} of dataset {other!r}; give "
                    "all files of DATASETS.TRAIN the same 'categories', in any order: a class may "
                    "be without boxes in some of them"
                )
    return {name: positions(names, classes[first]) for name, names in classes.items()}


def check_test_classes(dataset: str, names: Sequence[str], trained: Sequence[str]) -> None:
    """Raise DatasetError if a test set has classes that the model is not going to learn."""
    if absent := lacking(names, trained):
        raise DatasetError(
            f"DATASETS.TRAIN lacks the classes {shown(absent)} of the test set {dataset!r}; add "
            f"them to 'categories' of the training files, or take them out of those of {dataset!r}"
        )


def dataset_labels(dataset: str, names: Sequence[str], known: Sequence[str] | int) -> np.ndarray:
    """Return what each label of a model is in a test set, by the class's name; -1: not there.

    Classes that only one of the two has are logged.

    Args:
        names: the classes of the dataset, by contiguous index.
        known: the classes of the model; or their number if their names are not known, which then
            are taken for those of the dataset.

    Raises:
        DatasetError: they have no class in common, or not the same number of them.
    """
    if isinstance(known, int):
        if known != len(names):
            raise DatasetError(
                f"dataset {dataset!r} has {len(names)} classes ({shown(names)}), the model {known} "
                "whose names its checkpoint does not have; give the file all 'categories' of the "
                "model, in the order of their ids"
            )
        logger.warning(
            "the model's class names are not known: those of %s are taken, in their order", dataset
        )
        known = names
    labels = positions(known, names)
    if (labels < 0).all():
        raise DatasetError(
            f"dataset {dataset!r} has the classes {shown(names)}, the model knows {shown(known)}: "
            "none is the same; give the 'categories' of the file the names that the model knows "
            "(those of DATASETS.TRAIN where its checkpoint has none)"
        )
    if absent := lacking(known, names):
        logger.warning(
            "%s lacks these classes of the model, whose detections are left out: %s",
            dataset,
            shown(absent),
        )
    if absent := lacking(names, known):
        logger.warning(
            "%s has classes that the model does not know, whose objects count as missed: %s",
            dataset,
            shown(absent),
        )
    return labels
