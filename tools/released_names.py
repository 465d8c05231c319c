"""How the authors of DETRs name the tensors of a detector, and the kinds of files they released.

A rule is a regular expression and its replacement; rules apply in the order in which they stand.
"""

from dataclasses import dataclass

from smca.checkpoints.names import TORCHVISION, Rules, rename

# From the names in files of DETR, Conditional DETR, UP-DETR and SMCA to those of this project. No
# name has two meanings in them.
_RELEASED: Rules = (
    (r"^transformer\.encoder\.layers\.", "encoder.blocks."),
    (r"^transformer\.encoder\.norm\.", "encoder.norm."),
    (r"^transformer\.decoder\.", "decoder."),
    (r"\.linear1\.", ".ffn.0."),
    (r"\.linear2\.", ".ffn.3."),
    (r"^input_proj\.", "neck.projections.0."),
    (r"^query_embed\.", "decoder.query_embed."),
    (r"^class_embed\.", "heads.class_head."),
    # Attention.
    (r"^(encoder\..*)\.self_attn\.", r"\1.attention."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.(multihead|cross)_attn\.", ".co_attention."),
    # Conditional DETR, which has layers for content and position.
    (r"\.sa_", ".self_attention."),
    (r"\.ca_", ".co_attention."),
    (r"\.([qk])content_proj\.", r".\1_proj."),
    (r"\.([qk])pos_proj\.", r".\1_pos."),
    (r"\.qpos_sine_proj\.", ".q_sine."),
    # UP-DETR's pre-training.
    (r"^(patch2query|feature_align)\.", r"decoder.\1."),
    # SMCA.
    (r"\.point2\.", ".prior.offsets."),
    (r"\.point3\.", ".prior.scales."),
    (r"\.point4\.", ".prior.selection."),
    (r"\.norm4\.", ".prior.norm."),
    # The depthwise encoder.
    (r"^input_proj_512\.", "neck.projections.0."),
    (r"^input_proj_1024\.", "neck.projections.1."),
    (r"^input_proj_2048\.", "neck.projections.2."),
    (r"^input_proj_2048_3\.", "neck.projections.3."),
    (r"^transformer\.level_embed$", "neck.level_embed"),
    (r"^transformer\.conv\.", "encoder.reduce."),
    (r"\.conv_1\.", ".mixer.project_in."),
    (r"\.conv_2\.", ".mixer.project_out."),
    (r"\.self_attn_8\.", ".mixer.within.0."),
    (r"\.self_attn_16\.", ".mixer.within.1."),
    (r"\.self_attn_32\.", ".mixer.within.2."),
    (r"\.self_attn_64\.", ".mixer.within.3."),
    (r"\.high_to_low_(\d)\.", lambda match: f".mixer.down.{int(match[1]) - 1}."),
    (r"\.low_to_high_(\d)\.", lambda match: f".mixer.up.{int(match[1]) - 1}."),
    # MLPs, in which this project also numbers the ReLUs between the linear layers.
    (r"\.layers\.(\d)\.(weight|bias)$", lambda match: f".{2 * int(match[1])}.{match[2]}"),
    (r"^bbox_embed\.", "heads.box_head."),
    (r"^decoder\.layers\.0\.point1\.", "decoder.center."),
    (r"^decoder\.ref_point_head\.", "decoder.reference."),
    (r"^decoder\.query_scale\.", "decoder.transform."),
)


def own_names(name: str, body: str) -> list[str]:
    """This project's names of the tensors that a tensor of a released file holds.

    They are one, or three where the file has query, key and value in one matrix.

    Args:
        name: in the file.
        body: see :class:`Kind`.
    """
    if name.startswith(body):
        return ["backbone." + rename(name.removeprefix(body), TORCHVISION)]
    name = rename(name, _RELEASED)
    if ".in_proj_" in name:
        return [name.replace(".in_proj_", f".{part}_proj.") for part in "qkv"]
    return [name]


@dataclass(frozen=True)
class Kind:
    """A layout of released files.

    Attributes:
        title: its name in messages.
        marker: the start of a tensor's name, by which the kind is told from those after it.
        config: the matching file of configs/, where ``{}`` is the backbone.
        body: the start of the names of the backbone, which is torchvision's ResNet.
        detects: whether it finds COCO's objects, and has a class column for each of their ids.
    """

    title: str
    marker: str
    config: str
    body: str = "backbone.0.body."
    detects: bool = True


KINDS = {
    "smca_depthwise": Kind(
        title="SMCA with the depthwise encoder",
        marker="transformer.encoder.layers.0.self_attn_8.",
        config="smca_depthwise_{}_50ep",
    ),
    "conditional_detr": Kind(
        title="Conditional DETR",
        marker="transformer.decoder.layers.0.ca_",
        config="baselines/conditional_detr_{}_50ep",
    ),
    "smca": Kind(
        title="single-scale SMCA",
        marker="transformer.decoder.layers.0.point",
        config="smca_single_scale_R50_50ep",
    ),
    "up_detr_pretrained": Kind(
        title="pre-trained UP-DETR",
        marker="patch2query.",
        config="baselines/up_detr_pretrain_{}",
        detects=False,
    ),
    # Of the models that are left, only pre-norm ones have it.
    "up_detr": Kind(
        title="UP-DETR or a pre-norm DETR",
        marker="transformer.encoder.norm.",
        config="baselines/up_detr_{}_300ep",
    ),
    "detr": Kind(
        title="DETR",
        marker="transformer.decoder.layers.0.multihead_attn.",
        config="baselines/detr_{}_500ep",
    ),
    "torchvision_resnet": Kind(
        title="torchvision's ResNet",
        marker="layer1.0.conv1.",
        config="smca_{}_50ep",
        body="",
        detects=False,
    ),
}
