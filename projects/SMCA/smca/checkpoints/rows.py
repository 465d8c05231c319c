"""Tensors with a row for each class, query or scale, for a model with other classes or queries."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..data.classes import lacking, positions, shown
from ..errors import CheckpointError
from .names import PRETRAINING, QUERIES

logger = logging.getLogger(__name__)

CLASS_HEAD = "heads.class_head."
# The tensors whose shapes depend on the number of classes, of this project and of Detectron2's
# Faster R-CNN, and the key that sets this number.
CLASS_HEADS = {
    CLASS_HEAD: "MODEL.SMCA.NUM_CLASSES",
    "towers.class_head.": "MODEL.SMCA.NUM_CLASSES",
    "decoder.denoising.label_embed.": "MODEL.SMCA.NUM_CLASSES",
    "decoder.proposals.heads.class_head.": "MODEL.SMCA.NUM_CLASSES",
    "decoder.one_to_many.class_head.": "MODEL.SMCA.NUM_CLASSES",
    "roi_heads.box_predictor.": "MODEL.ROI_HEADS.NUM_CLASSES",
}


def by_class(
    state: Mapping[str, Tensor],
    names: Sequence[str],
    own: Mapping[str, Tensor],
    own_names: Sequence[str],
    source: str,
) -> dict[str, Tensor]:
    """Put the rows of a class head where the model has the classes of the same names.

    The rows of other classes stay the model's own.
    """
    places = torch.from_numpy(positions(own_names, names))
    found = places >= 0
    heads = [name for name in state if name in own and name.startswith(tuple(CLASS_HEADS))]
    # With a softmax, "no object" follows the classes. Other models have rows of other kinds.
    fit = [
        not name.startswith("roi_heads.")
        and state[name].shape[1:] == own[name].shape[1:]
        and len(state[name]) - len(names) == len(own[name]) - len(own_names)
        for name in heads
    ]
    sorted_state = dict(state)
    if not heads:
        return sorted_state
    if not found.any() or not all(fit):
        logger.warning(
            "class head not loaded, it starts anew: %s knows the classes %s", source, shown(names)
        )
        return sorted_state | {name: own[name] for name in heads}
    for name in heads:
        sorted_state[name] = rows = own[name].clone()
        rows[: len(places)][found] = state[name][places[found]].to(rows)
        rows[len(places) :] = state[name][len(names) :]
    new = lacking(own_names, names)
    anew = f"; these classes start anew: {shown(new)}" if new else ""
    logger.warning("class head taken by name from %s%s", source, anew)
    return sorted_state


def fit_queries(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    source: str,
    strict: bool,
    groups: tuple[int | None, int],
) -> Mapping[str, Tensor]:
    """``state`` with as many queries as the model has: its first ones, and further ones anew.

    A group of queries is never a copy of another, as the two could stay alike.

    Args:
        groups: numbers of groups in ``state``, None where its file does not say, and in the model.
    """
    both = [name for name in QUERIES if name in state and name in own]
    names = [name for name in both if state[name].shape[1:] == own[name].shape[1:]]
    had, wanted = groups
    if not names or (had is None and len(state[names[0]]) == len(own[names[0]])):
        return state
    had = had or 1
    old, new = len(state[names[0]]) // had, len(own[names[0]]) // wanted
    if (had, old) == (wanted, new):
        return state
    if strict and new > old:
        raise CheckpointError(
            f"{source} has {old} queries, and further ones find nothing before they are trained; "
            f"set MODEL.SMCA.NUM_QUERIES to {old} or less"
        )
    taken = "all are taken" if had <= wanted and old <= new else "the first are taken"
    anew = ", further ones start anew" if had < wanted or old < new else ""
    theirs, mine = f"{old} queries", f"MODEL.SMCA.NUM_QUERIES is {new}"
    if had != wanted:
        theirs = f"{had} groups of {theirs}" if had > 1 else theirs
        mine = f"MODEL.SMCA.QUERY_GROUPS is {wanted}, NUM_QUERIES {new}"
    if not strict or old > new:  # inference has the first group alone
        logger.warning("%s has %s, %s: %s%s", source, theirs, mine, taken, anew)
    fitted = {name: own[name].to(state[name], copy=True) for name in names}
    for name, rows in fitted.items():
        for group in range(min(had, wanted)):
            found = state[name][group * old : (group + 1) * old][:new]
            rows[group * new :][: len(found)] = found
    return {**state, **fitted}


def fine_tuned(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, strict: bool
) -> Mapping[str, Tensor]:
    """UP-DETR's pre-trained ``state`` for a model that detects objects.

    The class head stays the model's own: that of patches may have its shape.
    """
    if strict:
        raise CheckpointError(
            f"{source} is pre-trained to find patches, and knows no objects; fine-tune it first, "
            "in a training run with this MODEL.WEIGHTS, another OUTPUT_DIR, and without --resume"
        )
    logger.info(
        "%s is pre-trained: patch2query and feature_align are left out, the class head starts anew",
        source,
    )
    kept = {n: t for n, t in state.items() if not n.startswith((*PRETRAINING, CLASS_HEAD))}
    return kept | {n: t for n, t in own.items() if n.startswith(CLASS_HEAD)}


def with_level(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> Mapping:
    """``state`` with an embedding of a single scale, which Deformable DETR once lacked here."""
    name = "neck.level_embed"
    old = len(own.get(name, ())) == 1 and name not in state and "neck.projections.0.weight" in state
    if not old:
        return state
    logger.info("%s is from before its model had %s; zeros are the same", source, name)
    return {**state, name: torch.zeros_like(own[name])}
