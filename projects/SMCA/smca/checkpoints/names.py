"""How torchvision, Caffe2 and timm name the tensors of backbones."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

# Where a detector has a timm model.
TIMM = "backbone.timm."

# What DDP, torch.compile and Lightning add to the names of a model's tensors.
WRAPPERS = re.compile(r"^(?:(?:module|model|_orig_mod)\.)+|\b_orig_mod\.")

# How tensors' names begin in the files that tools/convert_checkpoint.py reads.
RELEASED = (
    "transformer.encoder.layers.0.self_attn_8.",
    "transformer.decoder.layers.0.ca_",
    "transformer.decoder.layers.0.point",
    "transformer.decoder.layers.0.multihead_attn.",
)
# How tensors' names begin that only UP-DETR's pre-training has.
PRETRAINING = ("decoder.patch2query.", "decoder.feature_align.")
# The tensors with a row for each query.
QUERIES = (
    *("decoder.query_embed.weight", "decoder.reference.weight"),
    *("decoder.anchors.weight", "decoder.contents.weight"),
)

# From torchvision's names of a ResNet to Detectron2's.
TORCHVISION: Rules = (
    (r"^layer(\d)\b", lambda match: f"res{int(match[1]) + 1}"),
    (r"^(conv1|bn1)\b", r"stem.\1"),
    (r"\bbn(\d)\b", r"conv\1.norm"),
    (r"\bdownsample\.0\b", "shortcut"),
    (r"\bdownsample\.1\b", "shortcut.norm"),
)

# From Caffe2's names of a ResNet, which MSRA's has in Detectron2's model zoo, to Detectron2's.
CAFFE2: Rules = (
    (r"^(conv1|res_conv1)_", "stem.conv1_"),
    (r"^(res\d)_(\d+)_", r"\1.\2."),
    (r"\bbranch1_", "shortcut_"),
    (r"\bbranch2([abc])_", lambda match: f"conv{'abc'.index(match[1]) + 1}_"),
    (r"_bn_s$", ".norm.weight"),
    (r"_bn_b$", ".norm.bias"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
)


def rename(name: str, rules: Rules) -> str:
    """Return a name after all rules, each a regular expression and its replacement, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def detectron2_names(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a bare ResNet's tensors, of :data:`TORCHVISION` etc., to ``backbone.res2...``.

    Tensors of a whole detector keep their names. The classifier of a bare ResNet is dropped.
    """
    if is_caffe2(model):
        model = {rename(name, CAFFE2): tensor for name, tensor in model.items()}
        # Its norms have no statistics. Those that Detectron2 gives them:
        for name in [name for name in model if name.endswith("norm.weight")]:
            norm, like = name.removesuffix("weight"), model[name]
            model[f"{norm}running_mean"] = torch.zeros_like(like)
            model[f"{norm}running_var"] = torch.ones_like(like)
    if "layer1.0.conv1.weight" in model:
        model = {rename(name, TORCHVISION): tensor for name, tensor in model.items()}
    if "stem.conv1.weight" not in model:
        return dict(model)
    return {
        f"backbone.{name}": tensor
        for name, tensor in model.items()
        # MSRA's first convolution has a bias, which Detectron2 leaves out, too.
        if name.startswith(("stem.conv1.", "res")) and name != "stem.conv1.bias"
    }


def is_caffe2(model: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a ResNet of Caffe2."""
    return "conv1_w" in model


def strides_first(model: Mapping[str, Tensor]) -> bool:
    """Whether a bare ResNet was trained with strides in its bottlenecks' first convolutions.

    Those of Caffe2 were, MSRA's, except ResNeXts, which have groups.
    """
    grouped = any(
        name.endswith("branch2b_w") and tensor.shape[0] != tensor.shape[1]
        for name, tensor in model.items()
    )
    return is_caffe2(model) and not grouped


def timm_names(model: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Rename the tensors of a bare timm model to those in a detector with the same backbone.

    Tensors of a whole detector keep their names.

    Args:
        model: of a classifier, or of a model with ``features_only``. That one has "stages_0" for a
            classifier's "stages.0", or "model." before all names.
        own: the detector's names.
    """
    if any(name.startswith("backbone.") for name in model):
        return dict(model)
    children = {name.split(".")[2] for name in own if name.startswith(TIMM)}
    renamed = {}
    for name, tensor in model.items():
        first, *rest = name.split(".", 2)
        if children == {"model"} and first != "model":
            name = f"model.{name}"
        elif len(rest) == 2 and f"{first}_{rest[0]}" in children:
            name = f"{first}_{rest[0]}.{rest[1]}"
        renamed[TIMM + name] = tensor
    return renamed
