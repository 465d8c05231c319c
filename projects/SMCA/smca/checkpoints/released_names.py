"""What the tensors of a detector are called in the files that its authors released.

A table maps a module or parameter of ours to theirs. ``#`` stands for the number of a layer, the
same in both. Where a table says ``in_proj``, theirs has query, key and value in one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = re.compile(r"\b(blocks|layers|res\d)\.(\d+)\.")
_ENCODER = ("encoder.blocks.#", "transformer.encoder.layers.#")
_DECODER = ("decoder.layers.#", "transformer.decoder.layers.#")


def _resnet(ours: str, theirs: str) -> dict[str, str]:
    """torchvision's ResNet."""
    names = {"stem.conv1": "conv1", "stem.conv1.norm": "bn1"}
    for stage in range(1, 5):
        block, their_block = f"res{stage + 1}.#", f"layer{stage}.#"
        for conv in range(1, 4):
            names[f"{block}.conv{conv}"] = f"{their_block}.conv{conv}"
            names[f"{block}.conv{conv}.norm"] = f"{their_block}.bn{conv}"
        names[f"{block}.shortcut"] = f"{their_block}.downsample.0"
        names[f"{block}.shortcut.norm"] = f"{their_block}.downsample.1"
    return {f"{ours}.{name}": theirs + name_there for name, name_there in names.items()}


def _mlp(ours: str, theirs: str, layers: int) -> dict[str, str]:
    """Ours counts the ReLUs between the linear layers, too."""
    return {f"{ours}.{2 * number}": f"{theirs}.layers.{number}" for number in range(layers)}


def _layer(ours: str, theirs: str, norms: int) -> dict[str, str]:
    """What all layers have."""
    names = {f"norm{number}": f"norm{number}" for number in range(1, norms + 1)}
    names |= {"ffn.0": "linear1", "ffn.3": "linear2"}
    return {f"{ours}.{name}": f"{theirs}.{there}" for name, there in names.items()}


def _attention(ours: str, theirs: str) -> dict[str, str]:
    names = {f"{ours}.{part}_proj": f"{theirs}.in_proj" for part in "qkv"}
    return {**names, f"{ours}.out_proj": f"{theirs}.out_proj"}


def _inside(places: tuple[str, str], names: Mapping[str, str]) -> dict[str, str]:
    ours, theirs = places
    return {f"{ours}.{name}": f"{theirs}.{there}" for name, there in names.items()}


_COMMON = {
    **_resnet("backbone", "backbone.0.body."),
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
    # An MLP as the box head is one, and so spelled as there.
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
        title: what it is.
        marker: how the name of a tensor starts that tells it from the kinds after it.
        config: the matching file of configs/; ``{}`` is the backbone.
        dc5: there is such a file for DC5 backbones, too.
        names: the table of names.
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
        names=_resnet("backbone", ""),
    ),
}


def released_name(ours: str, names: Mapping[str, str]) -> tuple[str, int | None] | None:
    """Where a tensor of ours is in a released file.

    Args:
        ours: the tensor's name.
        names: the table of a :class:`Kind`.

    Returns:
        the name there, and which third of the rows it is (None: it is the whole tensor); or None
        when the kind has no such tensor.
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
