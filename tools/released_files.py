"""Conversion of released files of DETRs and SMCA, and of torchvision's ResNets.

Conversion looks up each tensor of the matching config's detector in the file, and refuses the file
if a tensor of it is left over. So all of a file is used, or nothing is converted.

Files trained on COCO have a class column for each id from 0 to 90, 80 of which are classes, and
perhaps one more for no-object. Choosing columns is exact for sigmoid scores. Softmax scores of the
80 classes and no-object are those of the 92 columns divided by 1 - p, where p is the probability of
the ids that no object has: they are exact as far as training has made p 0.
"""

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from released_names import KINDS, own_names
from smca.checkpoints.files import read_tensors
from smca.checkpoints.loading import CLASS_HEAD, some
from smca.config import config_names
from smca.data.coco import COCO_CLASSES
from smca.errors import CheckpointError
from smca.modeling.backbone import DEPTHS

_NO_OBJECT = 91
_SHOWN = 20


@dataclass(frozen=True)
class Released:
    """A file as it was read.

    Attributes:
        path: of the file.
        tensors: by their names in the file.
        settings: the ``args`` of the authors' program; empty if the file has none.
    """

    path: str
    tensors: dict[str, Tensor]
    settings: argparse.Namespace


def read_released(path: str | os.PathLike) -> Released:
    """Read ``{"model": tensors, ...}`` or bare tensors, without running code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, is not a checkpoint, or asks to run code.
    """
    content = read_tensors(path)
    settings = content.get("args")
    if not isinstance(settings, argparse.Namespace):
        settings = argparse.Namespace()
    return Released(path=os.fspath(path), tensors=content["model"], settings=settings)


def recognise(released: Released) -> str:
    """The key of ``KINDS`` whose names the file has.

    Raises:
        CheckpointError: the file is of none of these kinds.
    """
    for name, kind in KINDS.items():
        if any(tensor.startswith(kind.marker) for tensor in released.tensors):
            return name
    if any(name.startswith(("heads.", "backbone.stem.", "stem.")) for name in released.tensors):
        raise CheckpointError(f"{released.path} has the names of this project: use it as it is")
    known = ", ".join(kind.title for kind in KINDS.values())
    raise CheckpointError(
        f"{released.path} has none of the known layouts ({known}); "
        f"it holds {some(list(released.tensors), _SHOWN)}"
    )


def read_options(released: Released, kind: str) -> dict[str, object]:
    """The values of config keys that the file shows, by key."""
    tensors, settings = released.tensors, released.settings
    depth = _depth(tensors, KINDS[kind].body)
    found: dict[str, object] = {"MODEL.RESNETS.DEPTH": depth}
    if depth in (18, 34):
        found["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 64
    if kind != "torchvision_resnet":
        encoder, decoder = "transformer.encoder.layers.", "transformer.decoder.layers."
        blocks = _count(tensors, encoder)
        found["MODEL.SMCA.NUM_QUERIES"] = _length(tensors, "query_embed.weight")
        found["MODEL.SMCA.DIM_FEEDFORWARD"] = _length(tensors, f"{encoder}0.linear1.weight")
        found["MODEL.SMCA.DECODER.NUM_LAYERS"] = _count(tensors, decoder)
        if kind == "smca_depthwise":
            found["MODEL.SMCA.ENCODER.NUM_LAYERS"] = blocks
            convs = [t for name, t in tensors.items() if name.startswith(encoder) and t.ndim == 4]
            kernels = [conv.shape[-1] for conv in convs]
            found["MODEL.SMCA.ENCODER.KERNEL_SIZE"] = max(kernels, default=None)
        else:
            found["MODEL.SMCA.ENCODER.BLOCKS"] = ["intra"] * blocks
        if isinstance(dilated := getattr(settings, "dilation", None), bool):
            found["MODEL.RESNETS.RES5_DILATION"] = 1 + dilated
        if isinstance(heads := getattr(settings, "nheads", None), int):
            found["MODEL.SMCA.NHEADS"] = heads
        patches = getattr(settings, "num_patches", None)
        if kind == "up_detr_pretrained" and isinstance(patches, int):
            found["MODEL.SMCA.UP_DETR.NUM_PATCHES"] = patches
    return {key: value for key, value in found.items() if value}


def matching_configs(released: Released, kind: str) -> list[str]:
    """Names of the files of configs/ that fit, best first, without ``.yaml``.

    A file only shows whether it was trained with DC5 if it has kept its settings.
    """
    options = read_options(released, kind)
    backbone = "R101" if options.get("MODEL.RESNETS.DEPTH") == 101 else "R50"
    config = KINDS[kind].config
    if kind == "detr" and _length(released.tensors, "class_embed.weight") == _NO_OBJECT:
        config = "baselines/detr_focal_{}_50ep"
    names = (config.format(backbone), config.format(f"DC5_{backbone}"))
    configs = [name for name in dict.fromkeys(names) if name in config_names()]
    configs = configs or [config.format("R50")]
    dilation = options.get("MODEL.RESNETS.RES5_DILATION")
    return {None: configs, 1: configs[:1], 2: configs[-1:]}[dilation]


def convert(
    released: Released, kind: str, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a released file to the tensors of ``expected``.

    Args:
        released: the file.
        kind: a key of ``KINDS``.
        expected: the state dict of the matching config's detector, on any device. Its number of
            class columns decides whether the last column of the file is used, no-object.

    Returns:
        the converted tensors, and the names of those left out on purpose.

    Raises:
        CheckpointError: tensors are missing, left over or of a wrong shape; all are named.
    """
    if kind == "torchvision_resnet":
        expected = {name: t for name, t in expected.items() if name.startswith("backbone.")}
    body = KINDS[kind].body
    sources = {ours: theirs for theirs in released.tensors for ours in own_names(theirs, body)}
    found = [name for name in expected if name in sources]
    converted, wrong = {}, {}
    for name in found:
        theirs, wanted = sources[name], tuple(expected[name].shape)
        source = released.tensors[theirs].detach()
        by_id = KINDS[kind].detects and name.startswith(CLASS_HEAD)
        fitted = _of_classes(source, wanted) if by_id else _fit(source, theirs, name, wanted)
        if fitted is not None and fitted.shape == wanted:
            converted[name] = fitted.clone()
        else:
            wrong.setdefault(theirs, f"{theirs} {tuple(source.shape)} for {name} {wanted}")
    used = {sources[name] for name in found}
    rest = [name for name in released.tensors if name not in used]
    # Batch norm's counters, and the classifier of a bare ResNet.
    left_out = [name for name in rest if name.endswith(".num_batches_tracked")]
    if kind == "torchvision_resnet":
        left_out += [name for name in rest if name in ("fc.weight", "fc.bias")]
    faults = {
        "left over": [name for name in rest if name not in left_out],
        "missing": [name for name in expected if name not in sources],
        "of a wrong shape": list(wrong.values()),
    }
    if any(faults.values()):
        listed = [f"{fault}: {some(names, _SHOWN)}" for fault, names in faults.items() if names]
        raise CheckpointError(
            f"{released.path} is not {KINDS[kind].title} as the config has it. {'; '.join(listed)}"
        )
    return converted, left_out


def _fit(source: Tensor, theirs: str, name: str, wanted: tuple[int, ...]) -> Tensor | None:
    """``source`` cut or padded for the tensor ``name``; None when it cannot be."""
    if ".in_proj_" in theirs:
        third = ("q_proj", "k_proj", "v_proj").index(name.split(".")[-2])
        fits = source.shape == (3 * wanted[0], *wanted[1:])
        return source.unflatten(0, (3, -1))[third] if fits else None
    if ".mixer." in name and source.shape == (*wanted, 1, 1):
        return source.flatten(1)
    if ".mixer." in name and source.ndim == len(wanted) == 4:
        # A smaller odd kernel is a larger one with zeros around.
        return F.pad(source, [max(0, wanted[-1] - source.shape[-1]) // 2] * 4)
    return source


def _of_classes(source: Tensor, wanted: tuple[int, ...]) -> Tensor | None:
    """The rows of COCO's classes, and of no-object if it is wanted; None when there are others."""
    columns = list(COCO_CLASSES)
    if wanted[0] > len(columns):
        columns.append(_NO_OBJECT)
    rows = source.shape[0] if source.ndim else 0
    fits = rows in (_NO_OBJECT, _NO_OBJECT + 1) and columns[-1] < rows
    return source[columns] if fits else None


def _depth(tensors: Mapping[str, Tensor], body: str) -> int | None:
    blocks = tuple(_count(tensors, f"{body}layer{stage}.") for stage in range(1, 5))
    bottleneck = f"{body}layer1.0.conv3.weight" in tensors
    return next((depth for depth, form in DEPTHS.items() if form == (bottleneck, blocks)), None)


def _count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow ``prefix`` in the names."""
    rest = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return len({name.partition(".")[0] for name in rest})


def _length(tensors: Mapping[str, Tensor], name: str) -> int | None:
    tensor = tensors.get(name)
    return tensor.shape[0] if tensor is not None and tensor.ndim else None
