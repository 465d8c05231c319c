"""How torchvision names the tensors of a ResNet."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

# From torchvision's names of a ResNet to Detectron2's.
TORCHVISION: Rules = (
    (r"^layer(\d)\b", lambda match: f"res{int(match[1]) + 1}"),
    (r"^(conv1|bn1)\b", r"stem.\1"),
    (r"\bbn(\d)\b", r"conv\1.norm"),
    (r"\bdownsample\.0\b", "shortcut"),
    (r"\bdownsample\.1\b", "shortcut.norm"),
)


def rename(name: str, rules: Rules) -> str:
    """Return a name after all rules, each a regular expression and its replacement, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def detectron2_names(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a bare ResNet's tensors, torchvision's or Detectron2's, to ``backbone.res2...``.

    Tensors of a whole detector keep their names. The classifier ``fc`` of a bare ResNet is dropped.
    """
    if "layer1.0.conv1.weight" in model:
        model = {rename(name, TORCHVISION): tensor for name, tensor in model.items()}
    if "stem.conv1.weight" not in model:
        return dict(model)
    return {
        f"backbone.{name}": tensor
        for name, tensor in model.items()
        if name.startswith(("stem.conv1.", "res"))
    }
