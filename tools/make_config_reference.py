#!/usr/bin/env python3
"""Write docs/CONFIG.md: every config key, its default, what it may be, and its meaning.

The table of keys is in smca/config: change it there and run this again.

Examples:
    python tools/make_config_reference.py
    python tools/make_config_reference.py --check
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smca.analysis.markdown import markdown_table
from smca.config import KEYS, flatten, get_cfg
from smca.config.model_keys import ABOUT
from smca.config.rules import Own
from smca.data.sampler import SMCA_SAMPLER_REGISTRY
from smca.engine.guard import guarded
from smca.modeling.registry import (
    SMCA_BACKBONE_REGISTRY,
    SMCA_DECODER_REGISTRY,
    SMCA_ENCODER_REGISTRY,
)

REFERENCE = Path(__file__).resolve().parent.parent / "docs/CONFIG.md"
REGISTRIES = {
    "MODEL.BACKBONE.NAME": SMCA_BACKBONE_REGISTRY,
    "MODEL.SMCA.ENCODER.NAME": SMCA_ENCODER_REGISTRY,
    "MODEL.SMCA.DECODER.NAME": SMCA_DECODER_REGISTRY,
    "DATALOADER.SAMPLER_TRAIN": SMCA_SAMPLER_REGISTRY,
}
TYPES = {bool: "True or False", int: "integer", float: "number", str: "text"}
INTRODUCTION = """\
# Configuration

<!-- Generated from smca/config by: python tools/make_config_reference.py -->

Every key that a YAML file or `KEY VALUE` on the command line may set, with its default. A config
in `configs/` states what it changes. An unknown key, a value of another type and one that is not
allowed are refused with the key's name before training begins. Where an `ENABLED` is False, the
keys beside it are not read and may have any value of their type.

One name or number stands for a list of one, and `a,b` for two names. `~` in a path is the home
folder. A config that only predicts (`smca.Predictor`, `demo.py`, the export and the pictures) may
have unknown keys and any values in `SOLVER`, `DATALOADER` and the other keys that only training and
evaluation read.

Keys that are Detectron2's have its names and defaults, and both hosts read them. With
`--engine detectron2` [its other keys](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references)
work too; the native host passes over them in a file that Detectron2 wrote.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the file is out of date"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    text = config_reference()
    if not args.check:
        REFERENCE.write_text(text, encoding="utf-8")
        print(REFERENCE)
    elif not REFERENCE.exists() or REFERENCE.read_text(encoding="utf-8") != text:
        print(f"{REFERENCE} is out of date: run python {__file__}", file=sys.stderr)
        return 1
    return 0


def config_reference() -> str:
    """Return the whole document: a table for each group, in the order of :func:`smca.get_cfg`."""
    groups: dict[str, list[list[str]]] = {"": []}
    for name, default in flatten(get_cfg()).items():
        whose = "ours" if isinstance(KEYS[name], Own) else "Detectron2's"
        row = [f"`{name}`", f"`{default!r}`", allowed(name), KEYS[name].meaning, whose]
        groups.setdefault(name.rpartition(".")[0], []).append(row)
    parts = [INTRODUCTION]
    for group, rows in groups.items():
        parts.append(f"## {group or 'Top level'}\n")
        if group in ABOUT:
            parts.append(f"{ABOUT[group]}\n")
        parts.append(markdown_table(["key", "default", "may be", "meaning", "whose"], rows, left=5))
    return "\n".join(parts)


def allowed(name: str) -> str:
    """Return the values that a key may have, in words."""
    if name in REGISTRIES:
        return "one of " + ", ".join(repr(part) for part in sorted(dict(REGISTRIES[name])))
    key = KEYS[name]
    kind = TYPES.get(type(key.default), "list")
    if key.rule is None:
        return kind
    return f"{kind}, {key.rule.words}" if kind in ("integer", "number") else key.rule.words


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
