"""Files that others released, of DETR, Conditional DETR and SMCA, and torchvision's ResNets.

Conversion goes by the detector of the matching config: each of its tensors is looked up in the
file, and what nobody asked for is left over. So all of a file is used, or it is refused.

Files trained on COCO have a class column for each id from 0 to 90, of which 80 are classes, and
perhaps one more for no-object. Choosing columns is exact for sigmoid scores. Softmax scores of the
80 classes and no-object are those of the 92 columns divided by 1 - p, p being what the file gives
to ids that no object ever had: exact only as far as training has made p 0.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ..errors import CheckpointError
from ..modeling.backbone import DEPTHS
from .files import read_tensors
from .released_names import KINDS, released_name

_UNUSED_IDS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = [number for number in range(91) if number not in _UNUSED_IDS]
_NO_OBJECT = 91
_MOST_LAYERS = 100  # of an encoder or decoder that is built to see what fits
_SHOWN = 20


def coco_class_names() -> tuple[str, ...]:
    """The names of COCO's 80 classes, in the order of their ids."""
    # torchvision has them beside weights, one an id from 0 to 90.
    by_id = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(by_id[number] for number in COCO_IDS)


@dataclass(frozen=True)
class Released:
    """A file as it was read.

    Attributes:
        path: of the file.
        tensors: by the names in the file.
        settings: the ``args`` the authors' program was started with; empty if it holds none.
    """

    path: str
    tensors: dict[str, Tensor]
    settings: argparse.Namespace


def read_released(path: str | os.PathLike) -> Released:
    """Read ``{"model": tensors, ...}`` or bare tensors, without running code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, of another kind, or asks to run code.
    """
    # Their programs keep their arguments beside the tensors; a namespace only holds values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = read_tensors(path)
    tensors = content["model"]
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    settings = content.get("args")
    if not isinstance(settings, argparse.Namespace):
        settings = argparse.Namespace()
    return Released(path=os.fspath(path), tensors=tensors, settings=settings)


def recognise(released: Released) -> str:
    """The key of ``KINDS`` whose names the file has.

    Raises:
        CheckpointError: it is none of them.
    """
    for name, kind in KINDS.items():
        if any(tensor.startswith(kind.marker) for tensor in released.tensors):
            return name
    if any(name.startswith(("heads.", "backbone.stem.", "stem.")) for name in released.tensors):
        raise CheckpointError(f"{released.path} has the names of this project: use it as it is")
    known = ", ".join(kind.title for kind in KINDS.values())
    raise CheckpointError(
        f"{released.path} has none of the layouts that are known ({known}); "
        f"it holds {_listed(released.tensors)}"
    )


def read_options(released: Released, kind: str) -> dict[str, object]:
    """The values of config keys that can be read from a file, by key.

    Raises:
        CheckpointError: it has more layers than any detector.
    """
    tensors, settings = released.tensors, released.settings
    body = "" if kind == "torchvision_resnet" else "backbone.0.body."
    found = {"MODEL.RESNETS.DEPTH": _depth(tensors, body)}
    if found["MODEL.RESNETS.DEPTH"] in (18, 34):
        found["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 64
    if kind != "torchvision_resnet":
        encoder, decoder = "transformer.encoder.layers.", "transformer.decoder.layers."
        blocks = _count(tensors, encoder)
        found["MODEL.SMCA.NUM_QUERIES"] = _length(tensors, "query_embed.weight")
        found["MODEL.SMCA.DIM_FEEDFORWARD"] = _length(tensors, f"{encoder}0.linear1.weight")
        found["MODEL.SMCA.DECODER.NUM_LAYERS"] = layers = _count(tensors, decoder)
        if max(blocks, layers) > _MOST_LAYERS:
            raise CheckpointError(
                f"{released.path} has {blocks} encoder and {layers} decoder layers"
            )
        if kind == "smca_depthwise":
            found["MODEL.SMCA.ENCODER.NUM_LAYERS"] = blocks
            found["MODEL.SMCA.ENCODER.KERNEL_SIZE"] = max(
                (
                    tensor.shape[-1]
                    for name, tensor in tensors.items()
                    if name.startswith(encoder) and tensor.ndim == 4
                ),
                default=None,
            )
        else:
            found["MODEL.SMCA.ENCODER.BLOCKS"] = ["intra"] * blocks
        if isinstance(dilated := getattr(settings, "dilation", None), bool):
            found["MODEL.RESNETS.RES5_DILATION"] = 1 + dilated
        if isinstance(heads := getattr(settings, "nheads", None), int):
            found["MODEL.SMCA.NHEADS"] = heads
    return {key: value for key, value in found.items() if value}


def matching_configs(released: Released, kind: str) -> list[str]:
    """Names of the files of configs/ that fit, best first, without ``.yaml``.

    A file does not show whether it was trained with DC5, unless it has kept its settings.
    """
    options = read_options(released, kind)
    backbone = "R101" if options.get("MODEL.RESNETS.DEPTH") == 101 else "R50"
    config = KINDS[kind].config
    if kind == "detr" and _length(released.tensors, "class_embed.weight") == _NO_OBJECT:
        config = "baselines/detr_focal_{}_50ep"
    plain, dc5 = config.format(backbone), config.format(f"DC5_{backbone}")
    if not KINDS[kind].dc5:
        return [plain]
    return {None: [plain, dc5], 1: [plain], 2: [dc5]}[options.get("MODEL.RESNETS.RES5_DILATION")]


def convert(
    released: Released, kind: str, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of ``expected`` from a released file.

    Args:
        released: the file.
        kind: a key of ``KINDS``.
        expected: the state dict of the matching config's detector, on any device. Whether a last
            class column is no-object or nothing follows from its number of columns.

    Returns:
        the converted tensors, and the names of those left out on purpose.

    Raises:
        CheckpointError: a tensor is missing, left over or of a wrong shape; all are named.
    """
    converted, missing, wrong = {}, {}, {}
    used = set()
    for name, tensor in expected.items():
        if kind == "torchvision_resnet" and not name.startswith("backbone."):
            continue
        place = released_name(name, KINDS[kind].names)
        if place is None or place[0] not in released.tensors:
            missing[place[0] if place else f"what {name} is made of"] = None
            continue
        theirs, third = place
        used.add(theirs)
        source = released.tensors[theirs].detach()
        wanted = tuple(tensor.shape)
        fitted = _fit(source, wanted, name, third)
        if fitted is not None and fitted.shape == wanted:
            converted[name] = fitted.clone()
        else:
            wrong.setdefault(theirs, f"{theirs} {tuple(source.shape)} for {name} {wanted}")
    rest = [name for name in released.tensors if name not in used]
    left_out = [name for name in rest if _is_idle(name, kind)]
    problems = {
        "left over": [name for name in rest if name not in left_out],
        "missing": list(missing),
        "of a wrong shape": list(wrong.values()),
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {_listed(names)}" for what, names in problems.items() if names)
        raise CheckpointError(
            f"{released.path} is not {KINDS[kind].title} as the config has it. {listed}"
        )
    return converted, left_out


def _fit(source: Tensor, wanted: tuple[int, ...], name: str, third: int | None) -> Tensor | None:
    """``source`` cut or filled up for the tensor ``name``; None when it cannot be."""
    if third is not None:
        fits = source.shape == (3 * wanted[0], *wanted[1:])
        return source.unflatten(0, (3, -1))[third] if fits else None
    if name.startswith("heads.class_head."):
        columns = {80: COCO_IDS, 81: [*COCO_IDS, _NO_OBJECT]}.get(wanted[0])
        rows = source.shape[0] if source.ndim else 0
        fits = columns and columns[-1] < rows and rows in (_NO_OBJECT, _NO_OBJECT + 1)
        return source[columns] if fits else None
    if ".mixer." in name and source.shape == (*wanted, 1, 1):
        return source.flatten(1)
    if ".mixer." in name and source.ndim == len(wanted) == 4:
        # A smaller odd kernel is a larger one with zeros around.
        return F.pad(source, [max(0, wanted[-1] - source.shape[-1]) // 2] * 4)
    return source


def _is_idle(name: str, kind: str) -> bool:
    """A counter of batch norm, or the classifier of a bare ResNet."""
    classifier = kind == "torchvision_resnet" and name in ("fc.weight", "fc.bias")
    return classifier or name.endswith(".num_batches_tracked")


def _depth(tensors: Mapping[str, Tensor], body: str) -> int | None:
    blocks = tuple(_count(tensors, f"{body}layer{stage}.") for stage in range(1, 5))
    bottleneck = f"{body}layer1.0.conv3.weight" in tensors
    return next((depth for depth, form in DEPTHS.items() if form == (bottleneck, blocks)), None)


def _count(tensors: Iterable[str], prefix: str) -> int:
    """How many numbers follow ``prefix`` in names."""
    return len(
        {name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)}
    )


def _length(tensors: Mapping[str, Tensor], name: str) -> int | None:
    tensor = tensors.get(name)
    return tensor.shape[0] if tensor is not None and tensor.ndim else None


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
