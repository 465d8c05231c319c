"""A row of the table of config keys, and the rules that say which values a key may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Rule:
    """A condition on values.

    Attributes:
        words: the condition, as in "KEY is VALUE; it must be WORDS".
        allows: tells whether a value of the default's type meets it.
    """

    words: str
    allows: Callable[[Any], bool]


@dataclass(frozen=True)
class Key:
    """A config key that Detectron2 has too, with the same default.

    Attributes:
        default: the value where no file and no command line sets another one of its type.
        meaning: one sentence for docs/CONFIG.md.
        rule: the condition on its values, or None.
    """

    default: Any
    meaning: str
    rule: Rule | None = None


class Own(Key):
    """A config key of this project."""


def group(name: str, /, **keys: Key) -> dict[str, Key]:
    """``{"MODEL.SMCA.NHEADS": key}`` for the group "MODEL.SMCA" and ``NHEADS=key``."""
    return {f"{name}.{key}" if name else key: row for key, row in keys.items()}


def one_of(*choices: object) -> Rule:
    words = ", ".join(map(repr, choices))
    return Rule(f"one of {words}" if len(choices) > 1 else words, lambda value: value in choices)


def at_least(least: int) -> Rule:
    return Rule(f"at least {least}", lambda value: value >= least)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _are_sizes(value: Any) -> bool:
    sizes = [value] if isinstance(value, int) else value
    return len(sizes) > 0 and all(_is_whole(size) and size >= 0 for size in sizes)


def _are_sides(value: Any) -> bool:
    return len(value) == 2 and all(map(_is_whole, value)) and 0 < value[0] <= value[1]


def _are_ascending(value: Any) -> bool:
    positive = all(_is_whole(step) and step > 0 for step in value)
    return positive and list(value) == sorted(set(value))


def _are_datasets(value: Any) -> bool:
    return all(
        isinstance(entry, (list, tuple)) and len(entry) == 3 and NAMES.allows(entry)
        for entry in value
    )


def _is_usable(device: str) -> bool:
    try:
        if torch.device(device).type != "cuda":  # the CPU stands in for a missing GPU
            torch.zeros((), device=device)
    except RuntimeError:
        return False
    return True


FINITE = Rule("finite", math.isfinite)
NOT_NEGATIVE = Rule("finite and at least 0", lambda value: 0 <= value < math.inf)
POSITIVE = Rule("finite and positive", lambda value: 0 < value < math.inf)
POSITIVE_OR_INFINITE = Rule("positive", lambda value: value > 0)
FRACTION = Rule("in [0, 1]", lambda value: 0 <= value <= 1)
BELOW_ONE = Rule("in [0, 1)", lambda value: 0 <= value < 1)
ODD = Rule("odd and at least 1", lambda value: value >= 1 and value % 2 == 1)
SEED = Rule("less than 2 ** 63", lambda value: value < 2**63)
DEVICE = Rule("a device such as 'cuda' or 'cpu'", _is_usable)

NAMES = Rule("names", lambda value: all(isinstance(name, str) for name in value))
BLOCKS = Rule(
    "a list of 'intra' and 'multi'", lambda value: all(b in ("intra", "multi") for b in value)
)
THREE_NUMBERS = Rule("three numbers", lambda value: len(value) == 3 and all(map(_is_number, value)))
THREE_POSITIVE = Rule(
    "three positive numbers", lambda value: THREE_NUMBERS.allows(value) and min(value) > 0
)
SIZES = Rule("sizes in pixels", _are_sizes)
SIDES = Rule("[least, greatest] in pixels", _are_sides)
STEPS = Rule("positive whole numbers in ascending order", _are_ascending)
COCO_FORMAT = Rule("a list of [name, annotation file, image folder]", _are_datasets)
