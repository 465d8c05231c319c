"""The reference of the config's keys, docs/CONFIG.md."""

from __future__ import annotations

from ..config import KEYS, flatten, get_cfg
from ..config.model_keys import ABOUT
from ..config.rules import Own
from ..modeling.registry import SMCA_DECODER_REGISTRY, SMCA_ENCODER_REGISTRY
from .markdown import markdown_table

_REGISTRIES = {
    "MODEL.SMCA.ENCODER.NAME": SMCA_ENCODER_REGISTRY,
    "MODEL.SMCA.DECODER.NAME": SMCA_DECODER_REGISTRY,
}
_TYPES = {bool: "True or False", int: "integer", float: "number", str: "text"}
_INTRODUCTION = """\
# Configuration

<!-- Generated from smca/config by: python tools/make_config_reference.py -->

Every key that a YAML file or `KEY VALUE` on the command line may set, with its default. A config
in `configs/` states what it changes. An unknown key, a value of another type and one that is not
allowed are refused with the key's name before training begins. Where an `ENABLED` is False, the
keys beside it are not read and may have any value of their type.

Keys that are Detectron2's have its names and defaults, and both hosts read them. With
`--engine detectron2` [its other keys](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references)
work too; the native host passes over them in a file that Detectron2 wrote.
"""


def config_reference() -> str:
    """The whole document: a table for each group, in the order of :func:`smca.get_cfg`."""
    groups: dict[str, list[list[str]]] = {"": []}
    for name, default in flatten(get_cfg()).items():
        whose = "ours" if isinstance(KEYS[name], Own) else "Detectron2's"
        row = [f"`{name}`", f"`{default!r}`", _allowed(name), KEYS[name].meaning, whose]
        groups.setdefault(name.rpartition(".")[0], []).append(row)
    parts = [_INTRODUCTION]
    for group, rows in groups.items():
        parts.append(f"## {group or 'Top level'}\n")
        if group in ABOUT:
            parts.append(f"{ABOUT[group]}\n")
        parts.append(markdown_table(["key", "default", "may be", "meaning", "whose"], rows, left=5))
    return "\n".join(parts)


def _allowed(name: str) -> str:
    if name in _REGISTRIES:
        return "one of " + ", ".join(repr(part) for part in sorted(dict(_REGISTRIES[name])))
    key = KEYS[name]
    kind = _TYPES.get(type(key.default), "list")
    if key.rule is None:
        return kind
    return f"{kind}, {key.rule.words}" if kind in ("integer", "number") else key.rule.words
