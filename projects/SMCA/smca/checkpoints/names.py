"""How other programs name the tensors of a detector: torchvision, and the authors of DETRs.

A table maps a module or parameter of this project to its name in a released file. ``#`` stands for
the number of a layer, the same in both. Where the table says ``in_proj``, the file has query, key
and value in one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

_NUMBER = re.compile(r"\b(blocks|layers|res\d)\.(\d+)\.")
_ENCODER = ("encoder.blocks.#", "transformer.encoder.layers.#")
_DECODER = ("decoder.layers.#", "transformer.decoder.layers.#")
# From torchvision's names of a ResNet to Detectron2's, in this order.
_TORCHVISION = (
    (re.compile(r"^layer(\d)\b"), lambda match: f"res{int(match[1]) + 1}"),
    (re.compile(r"^(conv1|bn1)\b"), r"stem.\1"),
    (re.compile(r"\bbn(\d)\b"), r"conv\1.norm"),
    (re.compile(r"\bdownsample\.0\b"), "shortcut"),
    (re.compile(r"\bdownsample\.1\b"), "shortcut.norm"),
)


def detectron2_names(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a bare ResNet's tensors, torchvision's or Detectron2's, to ``backbone.res2...``.

    Tensors of a whole detector keep their names. The classifier ``fc`` of a bare ResNet is dropped.
    """
    if "layer1.0.conv1.weight" in model:
        model = {_detectron2_name(name): tensor for name, tensor in model.items()}
    if "stem.conv1.weight" not in model:
        return dict(model)
    return {
        f"backbone.{name}": tensor
        for name, tensor in model.items()
        if name.startswith(("stem.conv1.", "res"))
    }


def _detectron2_name(name: str) -> str:
    for pattern, replacement in _TORCHVISION:
        name = pattern.sub(replacement, name)
    return name


def _resnet(prefix: str) -> dict[str, str]:
    """The backbone, which released files have as torchvision's ResNet after ``prefix``."""
    layers = [f"{kind}{number}" for kind in ("conv", "bn") for number in (1, 2, 3)]
    layers += ["downsample.0", "downsample.1"]
    names = [f"layer{stage}.#.{layer}" for stage in range(1, 5) for layer in layers]
    names += ["conv1", "bn1"]
    return {f"backbone.{_detectron2_name(name)}": prefix + name for name in names}


def _mlp(ours: str, theirs: str, layers: int) -> dict[str, str]:
    """An MLP, where this project also numbers the ReLUs between the linear layers."""
    return {f"{ours}.{2 * number}": f"{theirs}.layers.{number}" for number in range(layers)}


def _layer(ours: str, theirs: str, norms: int) -> dict[str, str]:
    """The norms and feed-forward network that every layer has."""
    names = {f"norm{number}": f"norm{number}" for number in range(1, norms + 1)}
    names |= {"ffn.0": "linear1", "ffn.3": "linear2"}
    return {f"{ours}.{name}": f"{theirs}.{there}" for name, there in names.items()}


def _attention(ours: str, theirs: str) -> dict[str, str]:
    """Multi-head attention whose query, key and value are one matrix in the file."""
    names = {f"{ours}.{part}_proj": f"{theirs}.in_proj" for part in "qkv"}
    return {**names, f"{ours}.out_proj": f"{theirs}.out_proj"}


def _inside(places: tuple[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """``names`` of the parts of a module, with the module's own names before them."""
    ours, theirs = places
    return {f"{ours}.{name}": f"{theirs}.{there}" for name, there in names.items()}


_COMMON = {
    **_resnet("backbone.0.body."),
    **_layer(*_ENCODER, norms=2),
    **_layer(*_DECODER, norms=3),
    "decoder.norm": "transformer.decoder.norm",
    "decoder.query_embed": "query_embed",
    "heads.class_head": "class_embed",
    **_mlp("heads.box_head", "bbox_embed", 3),
}
_SINGLE_SCALE = {
    **_COMMON,
    "neck.projections.0": "input_proj",
    **_attention(f"{_ENCODER[0]}.attention", f"{_ENCODER[1]}.self_attn"),
}
_PLAIN_DECODER = {
    **_attention(f"{_DECODER[0]}.self_attention", f"{_DECODER[1]}.self_attn"),
    **_attention(f"{_DECODER[0]}.co_attention", f"{_DECODER[1]}.multihead_attn"),
}
_SMCA_DECODER = {
    **_PLAIN_DECODER,
    # An MLP that is named as the box head is.
    **_mlp("decoder.center", "transformer.decoder.layers.0.point1", 3),
    **_inside(
        _DECODER,
        {
            "prior.offsets": "point2",
            "prior.scales": "point3",
            "prior.selection": "point4",
            "prior.norm": "norm4",
        },
    ),
}
_CONDITIONAL_DECODER = {
    **_inside(
        _DECODER,
        {
            "self_attention.q_proj": "sa_qcontent_proj",
            "self_attention.q_pos": "sa_qpos_proj",
            "self_attention.k_proj": "sa_kcontent_proj",
            "self_attention.k_pos": "sa_kpos_proj",
            "self_attention.v_proj": "sa_v_proj",
            "self_attention.out_proj": "self_attn.out_proj",
            "co_attention.q_proj": "ca_qcontent_proj",
            "co_attention.q_pos": "ca_qpos_proj",
            "co_attention.q_sine": "ca_qpos_sine_proj",
            "co_attention.k_proj": "ca_kcontent_proj",
            "co_attention.k_pos": "ca_kpos_proj",
            "co_attention.v_proj": "ca_v_proj",
            "co_attention.out_proj": "cross_attn.out_proj",
        },
    ),
    **_mlp("decoder.reference", "transformer.decoder.ref_point_head", 2),
    **_mlp("decoder.transform", "transformer.decoder.query_scale", 2),
}
_DEPTHWISE_ENCODER = {
    **{
        f"neck.projections.{scale}": f"input_proj_{channels}"
        for scale, channels in enumerate(("512", "1024", "2048", "2048_3"))
    },
    "neck.level_embed": "transformer.level_embed",
    "encoder.reduce": "transformer.conv",
    **_inside(
        _ENCODER,
        {
            "mixer.project_in": "conv_1",
            "mixer.project_out": "conv_2",
            **{f"mixer.within.{scale}": f"self_attn_{8 << scale}" for scale in range(4)},
            **{f"mixer.down.{scale}": f"high_to_low_{scale + 1}" for scale in range(3)},
            **{f"mixer.up.{scale}": f"low_to_high_{scale + 1}" for scale in range(3)},
        },
    ),
}


@dataclass(frozen=True)
class Kind:
    """A layout of released files.

    Attributes:
        title: its name in messages.
        marker: the start of a tensor's name, by which the kind is told from those after it.
        config: the matching file of configs/, where ``{}`` is the backbone.
        names: the table of names.
        dc5: configs/ has such a file for DC5 backbones, too.
    """

    title: str
    marker: str
    config: str
    names: dict[str, str]
    dc5: bool = False


KINDS = {
    "smca_depthwise": Kind(
        title="SMCA with the depthwise encoder",
        marker="transformer.encoder.layers.0.self_attn_8.",
        config="smca_depthwise_{}_50ep",
        names={**_COMMON, **_SMCA_DECODER, **_DEPTHWISE_ENCODER},
    ),
    "conditional_detr": Kind(
        title="Conditional DETR",
        marker="transformer.decoder.layers.0.ca_",
        config="baselines/conditional_detr_{}_50ep",
        names={**_SINGLE_SCALE, **_CONDITIONAL_DECODER},
        dc5=True,
    ),
    "smca": Kind(
        title="single-scale SMCA",
        marker="transformer.decoder.layers.0.point",
        config="smca_single_scale_R50_50ep",
        names={**_SINGLE_SCALE, **_SMCA_DECODER},
    ),
    "detr": Kind(
        title="DETR",
        marker="transformer.decoder.layers.0.multihead_attn.",
        config="baselines/detr_{}_500ep",
        names={**_SINGLE_SCALE, **_PLAIN_DECODER},
        dc5=True,
    ),
    "torchvision_resnet": Kind(
        title="torchvision's ResNet",
        marker="layer1.0.conv1.",
        config="smca_{}_50ep",
        names=_resnet(""),
    ),
}


def released_name(ours: str, names: Mapping[str, str]) -> tuple[str, int | None] | None:
    """Find a tensor of this project in a released file.

    Args:
        ours: the tensor's name.
        names: the table of a :class:`Kind`.

    Returns:
        the name in the file, and which third of its rows the tensor is (None: all of them); or
        None when the kind has no such tensor.
    """
    number = _NUMBER.search(ours)
    key = _NUMBER.sub(r"\1.#.", ours, count=1)
    module, _, leaf = key.rpartition(".")
    third = None
    if key in names:
        theirs = names[key]
    elif module not in names:
        return None
    elif names[module].endswith(".in_proj"):
        theirs = f"{names[module]}_{leaf}"
        third = ("q_proj", "k_proj", "v_proj").index(module.rpartition(".")[2])
    else:
        theirs = f"{names[module]}.{leaf}"
    return theirs.replace("#", number[2] if number else "#"), third
