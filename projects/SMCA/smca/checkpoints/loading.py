"""Putting the tensors of a checkpoint into a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import CheckpointError
from .fetching import fetch
from .files import read_checkpoint

logger = logging.getLogger(__name__)

# Tensors whose shapes depend on the number of classes, and the key that sets it; the second are
# Faster R-CNN's.
CLASS_HEADS = {
    "heads.class_head.": "MODEL.SMCA.NUM_CLASSES",
    "roi_heads.box_predictor.": "MODEL.ROI_HEADS.NUM_CLASSES",
}
# Where Detectron2's feature pyramid has its ResNet.
FPN_RESNET = "backbone.bottom_up."


def load(detector: nn.Module, path: str | os.PathLike, *, whole: bool = False) -> dict:
    """Load any checkpoint file of the project, or a ResNet's, into ``detector``.

    Of a run that averages its weights the averaged ones are taken.

    Args:
        detector: the model, of either host.
        path: see :func:`~smca.checkpoints.files.read_checkpoint`; or an address, see
            :func:`~smca.checkpoints.fetching.fetch`.
        whole: every tensor of the model must be in the file.

    Returns:
        what else the file holds.

    Raises:
        CheckpointError: the file does not fit; the message names the tensors.
    """
    content = read_checkpoint(fetch(path))
    load_state(detector, pop_weights(content), source=os.fspath(path), whole=whole)
    return content


def pop_weights(content: dict) -> dict[str, Tensor]:
    """Take out of a checkpoint the weights that a model is used with.

    They are the averaged ones, ``"ema"``, where there are such, else ``"model"``; both go.
    """
    model, averaged = content.pop("model"), content.pop("ema", None)
    return model if averaged is None else averaged


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, whole: bool
) -> list[str]:
    """:func:`load` for tensors that have been read already.

    Returns:
        the names of the model's tensors that are not in ``state``.
    """
    own = model.state_dict()
    resnet = FPN_RESNET if _has(own, FPN_RESNET) else "backbone."
    if not _has(state, resnet):
        state = {name.replace("backbone.", resnet, 1): tensor for name, tensor in state.items()}
    wrong = {
        name: (tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    }
    listed = "; ".join(
        f"{name} has shape {theirs}, the model wants {ours}"
        for name, (theirs, ours) in list(wrong.items())[:5]
    )
    keys = {key for head, key in CLASS_HEADS.items() if _has(wrong, head)}
    only_classes = all(name.startswith(tuple(CLASS_HEADS)) for name in wrong)
    if wrong and (whole or not only_classes):
        remedy = ", ".join(keys) if only_classes else "the config file"
        raise CheckpointError(f"{source} does not fit the model, check {remedy}: {listed}")
    if wrong:
        logger.warning("%s: class head not loaded, it starts anew: %s", source, listed)
        state = {name: tensor for name, tensor in state.items() if name not in wrong}
    rounded = [n for n, t in state.items() if n in own and _is_rounded(t, own[n])]
    if rounded:
        raise CheckpointError(
            f"{source} has whole numbers for {some(rounded)}, perhaps of a model that was "
            "quantised; take the checkpoint from before"
        )
    # A frozen batch norm has no such counter.
    unknown = [n for n in state if n not in own and not n.endswith("num_batches_tracked")]
    missing = [n for n in own if n not in state and n not in wrong]
    if len(missing) == len(own):
        remedy = ""
        if _has(state, "transformer."):
            remedy = "; tools/convert_checkpoint.py reads what others released"
        raise CheckpointError(
            f"{source} holds none of the model's tensors, but {some(unknown)}{remedy}"
        )
    backbone_alone = all(name.startswith(resnet) for name in state)
    if missing and whole:
        if backbone_alone:
            raise CheckpointError(
                f"{source} holds a backbone alone, from which a training starts: it finds nothing "
                "yet; name a trained checkpoint, such as a run's OUTPUT_DIR/model_final.pth"
            )
        raise CheckpointError(f"{source} lacks {some(missing)}")
    if backbone_alone:
        lacking = [name for name in missing if name.startswith(resnet)]
        # Stages that the model has no use for are not built.
        stages = {_stage(name, resnet) for name in own}
        besides = [name for name in unknown if _stage(name, resnet) in stages]
        if lacking or besides:
            raise CheckpointError(
                f"{source} holds another backbone, check MODEL.RESNETS.DEPTH and NORM, or the "
                f"file: it lacks {some(lacking)}, and has {some(besides)} besides"
            )
        unknown = []
        logger.info("%s: backbone loaded, the rest starts anew", source)
    elif missing:
        logger.warning("%s lacks %s; they start anew", source, some(missing))
    if unknown:
        logger.warning("%s has tensors the model does not know: %s", source, some(unknown))
    model.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False)
    return missing


def frozen_tensors(model: nn.Module) -> list[str]:
    """The names of a backbone's tensors that training leaves as they are, in either host."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for path, module in model.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        if {"weight", "running_var"} <= buffers.keys():  # a frozen batch norm
            names += [f"{path}.{name}" for name in buffers]
    return [name for name in names if name.startswith("backbone.")]


def _is_rounded(tensor: Tensor, wanted: Tensor) -> bool:
    return wanted.is_floating_point() and not tensor.is_floating_point()


def _has(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def _stage(name: str, resnet: str) -> str:
    """``res4`` of ``backbone.res4.0.conv1.weight``."""
    return name.removeprefix(resnet).partition(".")[0]


def some(names: list[str]) -> str:
    """A list of names as text, shortened."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more
