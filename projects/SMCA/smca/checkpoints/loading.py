"""Loading the tensors of a checkpoint into a model."""

import logging
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..data.classes import shown
from ..errors import CheckpointError
from .fetching import fetch
from .files import read_tensors
from .names import (
    PRETRAINING,
    QUERIES,
    RELEASED,
    TIMM,
    detectron2_names,
    strides_first,
    timm_names,
)
from .rows import CLASS_HEAD, CLASS_HEADS, by_class, fine_tuned, fit_queries, with_level

logger = logging.getLogger(__name__)

# Only pre-norm encoders end with it.
_LAST_NORM = "encoder.norm."

# Detectron2's feature pyramid has its ResNet here.
_FPN_RESNET = "backbone.bottom_up."


def load(detector: nn.Module, path: str | os.PathLike, *, strict: bool = False) -> dict:
    """Load any checkpoint file of the project, or a backbone's, into ``detector``.

    If the file has averaged weights, these are loaded.

    Args:
        detector: the model, of either host.
        path: of a file that :func:`~smca.checkpoints.files.read_checkpoint` reads, or an address
            that :func:`~smca.checkpoints.fetching.fetch` knows.
        strict: refuse a file that lacks tensors of the model, or has too few queries.

    Returns:
        the rest of the file's content.

    Raises:
        CheckpointError: the file does not fit; the message names the tensors.
    """
    content = read_tensors(fetch(path))
    state = pop_weights(content)
    load_state(detector, state, source=os.fspath(path), strict=strict, content=content)
    return content


def pop_weights(content: dict) -> dict[str, Tensor]:
    """Take the weights to use a model with out of a checkpoint.

    They are the averaged ones, ``"ema"``, if there are any, else ``"model"``; both are taken out.
    """
    model, averaged = content.pop("model"), content.pop("ema", None)
    return model if averaged is None else averaged


def num_logits(state: Mapping[str, Tensor]) -> int:
    """The number of outputs of a checkpoint's class head; 0 if it has no such head."""
    return max((len(t) for name, t in state.items() if name.startswith(CLASS_HEAD)), default=0)


def trained_classes(state: Mapping[str, Tensor], content: Mapping[str, Any], softmax: bool) -> int:
    """The number of classes of a checkpoint with a class head, else 0 or less.

    Args:
        content: the rest of the file.
        softmax: the config has one logit more than classes, for no object.

    Raises:
        CheckpointError: the file names another number of classes.
    """
    number, names = num_logits(state) - softmax, content.get("class_names")
    if names and number > 0 and number != len(names):
        raise CheckpointError(
            f"the checkpoint has {number + softmax} logits for {len(names)} classes; set "
            "MODEL.SMCA.LOSS.CLASSIFICATION as in its training, to "
            f"{'focal' if softmax else 'softmax'}"
        )
    return number


def query_groups(model: nn.Module) -> int:
    """The number of groups of queries of a detector; 1 for any other model."""
    return getattr(getattr(model, "decoder", None), "query_groups", 1)


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    strict: bool,
    content: Mapping[str, Any] = MappingProxyType({}),
    same_queries: bool = False,
) -> list[str]:
    """Load tensors as :func:`load` does.

    Rows of the class head are taken by the classes' names where these are known, if the model has
    other ``class_names`` than the file. A model that has none (``None``) gets the file's with its
    class head.

    Args:
        source: names the tensors' origin in messages.
        content: the rest of the file: its ``class_names`` by contiguous index, and the number of
            its ``query_groups``.
        same_queries: refuse other numbers of queries or of groups, for which an optimizer has no
            state.

    Returns:
        the names of the model's tensors that are not in ``state``.
    """
    own = model.state_dict()
    mine, class_names = getattr(model, "class_names", None), content.get("class_names")
    backbone, keys = "backbone.", "MODEL.RESNETS.DEPTH and NORM"
    if _has(own, TIMM):
        backbone, keys = TIMM, "MODEL.TIMM.NAME"
        state = timm_names(state, own)
    else:
        bare, first = not _has(state, backbone), strides_first(state)
        state = detectron2_names(state)
        if bare and _has(state, backbone) and first != _strides_first(model):
            raise CheckpointError(
                f"{source} is a ResNet for MODEL.RESNETS.STRIDE_IN_1X1 {first}: "
                f"{'the first 1x1' if first else 'the 3x3'} convolutions of its bottlenecks stride"
            )
    if _has(own, _FPN_RESNET):
        backbone = _FPN_RESNET
        if not _has(state, backbone):
            state = {n.replace("backbone.", backbone, 1): tensor for n, tensor in state.items()}
    if (theirs := _kind(state)) and (ours := _kind(own)) and theirs != ours:
        raise CheckpointError(
            f"{source} has {theirs}*, and the model {ours}*; it is another detector, start from a "
            "backbone as the files of configs/ do"
        )
    pretrained = _has(state, PRETRAINING) and not _has(own, PRETRAINING)
    if pretrained:
        state = fine_tuned(state, own, source, strict)
    if class_names and mine and list(class_names) != list(mine):
        if strict:
            raise CheckpointError(
                f"{source} knows the classes {shown(class_names)}, the data has {shown(mine)}; "
                "give the data those of the checkpoint, in their order, or train without --resume "
                "from this MODEL.WEIGHTS, which takes them by name"
            )
        state = by_class(state, class_names, own, mine, source)
    if not same_queries:
        groups = (content.get("query_groups"), query_groups(model))
        state = fit_queries(state, own, source, strict, groups)
    state = with_level(state, own, source)
    pre_norm = _has(state, _LAST_NORM)
    if _has(state, "encoder.blocks.") and pre_norm != _has(own, _LAST_NORM):
        raise CheckpointError(
            f"{source} does not fit the model, set MODEL.SMCA.PRE_NORM {pre_norm}: "
            "its blocks norm their inputs or their sums, and the model's do the other"
        )
    missing = [name for name in own if name not in state]
    # A frozen batch norm has no such counter.
    unknown = [n for n in state if n not in own and not n.endswith("num_batches_tracked")]
    if len(missing) == len(own):
        remedy = ""
        if "query_embed.weight" in state and any(n.startswith(RELEASED) for n in state):
            remedy = "; tools/convert_checkpoint.py reads files that others released"
        elif _has(state, _FPN_RESNET):
            remedy = "; it is another detector, start from a backbone as the files of configs/ do"
        elif backbone == TIMM:
            remedy = "; docs/MODEL.md says how to save the weights of MODEL.TIMM.NAME"
        raise CheckpointError(
            f"{source} holds none of the model's tensors, but {some(unknown)}{remedy}"
        )
    backbone_alone = all(name.startswith(backbone) for name in state)
    if missing and strict:
        fault = f"lacks {some(missing)}"
        if backbone_alone:
            fault = (
                "holds a backbone alone, which finds nothing before it is trained; name a "
                "trained checkpoint, such as a run's OUTPUT_DIR/model_final.pth"
            )
        raise CheckpointError(f"{source} {fault}")
    fitting = _fitting({n: t for n, t in state.items() if n in own}, own, source, strict)
    if backbone_alone:
        lacking = [name for name in missing if name.startswith(backbone)]
        # Stages that the model does not use are not built. A timm model may lie one level deeper.
        within = f"{TIMM}model." if _has(own, f"{TIMM}model.") else backbone
        stages = tuple({within + name.removeprefix(within).partition(".")[0] for name in own})
        surplus = [name for name in unknown if name.startswith(stages)]
        if lacking or surplus:
            raise CheckpointError(
                f"{source} holds another backbone, check {keys}, or the file: it lacks "
                f"{some(lacking)}, and also has {some(surplus)}"
            )
        logger.info("%s: backbone loaded, the rest starts anew", source)
    elif missing:
        logger.warning("%s lacks %s; they start anew", source, some(missing))
    if unknown and not backbone_alone:
        logger.warning("%s has tensors the model does not know: %s", source, some(unknown))
    if mine and not (strict or class_names or pretrained) and _has(fitting, CLASS_HEAD):
        logger.info("%s has no class names: its class head is taken in its own order", source)
    model.load_state_dict(fitting, strict=False)
    if mine is None and class_names and _has(fitting, CLASS_HEAD):
        model.class_names = tuple(class_names)  # type: ignore[assignment]
    return missing


def _kind(names: Mapping[str, object]) -> str:
    """The part that tells a whole detector from those of other kinds; "" if there is none."""
    return next((part for part in ("decoder.", "towers.", "roi_heads.") if _has(names, part)), "")


def _strides_first(model: nn.Module) -> bool:
    """Whether the first 1x1 convolutions of a ResNet's bottlenecks stride, in either host."""
    convs = (module for name, module in model.named_modules() if name.endswith("res3.0.conv1"))
    return any(conv.kernel_size == (1, 1) and conv.stride == (2, 2) for conv in convs)


def _fitting(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, strict: bool
) -> dict[str, Tensor]:
    """The tensors of ``state``, all of which must fit; unless ``strict``, but for a class head."""
    misfits = {
        name: f"{name} has shape {tuple(tensor.shape)}, the model wants {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != own[name].shape
    }
    listed = "; ".join(list(misfits.values())[:5])
    only_classes = all(name.startswith(tuple(CLASS_HEADS)) for name in misfits)
    if misfits and (strict or not only_classes):
        keys = list(dict.fromkeys(key for head, key in CLASS_HEADS.items() if _has(misfits, head)))
        remedy = ", ".join(keys) if only_classes else "the config file"
        if misfits.keys() <= set(QUERIES):
            remedy = "MODEL.SMCA.NUM_QUERIES and QUERY_GROUPS"
        if keys == [CLASS_HEADS[CLASS_HEAD]] and strict:
            remedy += " (to evaluate, 0 takes the file's number)"
        raise CheckpointError(f"{source} does not fit the model, check {remedy}: {listed}")
    if misfits:
        logger.warning("%s: class head not loaded, it starts anew: %s", source, listed)
    fitting = {name: tensor for name, tensor in state.items() if name not in misfits}
    floats = [name for name in fitting if own[name].is_floating_point()]
    if rounded := [name for name in floats if not fitting[name].is_floating_point()]:
        raise CheckpointError(
            f"{source} has whole numbers for {some(rounded)}, perhaps of a model that was "
            "quantised; take the checkpoint from before"
        )
    return fitting


def frozen_tensors(model: nn.Module) -> list[str]:
    """The names of a backbone's tensors that training does not change, in either host."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for path, module in model.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        if {"weight", "running_var"} <= buffers.keys():  # a frozen batch norm
            names += [f"{path}.{name}" for name in buffers]
    return [name for name in names if name.startswith("backbone.")]


def _has(names: Mapping[str, object], prefix: str | tuple[str, ...]) -> bool:
    return any(name.startswith(prefix) for name in names)


def some(names: Sequence[str], most: int = 5) -> str:
    """A list of names as text, shortened."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
