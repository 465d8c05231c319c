"""A row of the table of config keys, and the rules that say which values a key may have."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
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


ONLY_THEIRS = Rule(
    "False, because only Detectron2's own trainers and tools read it", lambda value: value is False
)


def at_least(least: int) -> Rule:
    return Rule(f"at least {least}", lambda value: value >= least)


def _are_whole(numbers: Iterable[Any], least: int) -> bool:
    """Whether all are whole numbers (True and False are not) of ``least`` or more."""
    return all(type(number) is int and number >= least for number in numbers)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _are_sizes(value: Any) -> bool:
    sizes = [value] if isinstance(value, int) else value
    return len(sizes) > 0 and _are_whole(sizes, 0)


def _is_dataset(entry: Any) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 3 and NAMES.allows(entry)


def _is_usable(device: str) -> bool:
    try:
        if torch.device(device).type != "cuda":  # the CPU stands in for a missing GPU
            torch.zeros((), device=device)
    except (RuntimeError, AssertionError):  # the latter where torch is built without the device
        return False
    return True


FINITE = Rule("finite", math.isfinite)
NOT_NEGATIVE = Rule("finite and at least 0", lambda value: 0 <= value < math.inf)
OPTIONAL = Rule(
    "None, or finite and at least 0",
    lambda value: value is None or (type(value) in (int, float) and 0 <= value < math.inf),
)
POSITIVE = Rule("finite and positive", lambda value: 0 < value < math.inf)
POSITIVE_OR_INFINITE = Rule("positive", lambda value: value > 0)
FRACTION = Rule("in [0, 1]", lambda value: 0 <= value <= 1)
BELOW_ONE = Rule("in [0, 1)", lambda value: 0 <= value < 1)
ODD = Rule("odd and at least 1", lambda value: value >= 1 and value % 2 == 1)
SEED = Rule("less than 2 ** 63", lambda value: value < 2**63)
DEVICE = Rule("a device that torch has here: 'cuda', 'cpu', or 'mps' on a Mac", _is_usable)
# A path may begin with ~ as long as that stands for a folder.
PATH = Rule(
    "a path, where ~ is followed by / or a user's name (./~ is a folder named ~)",
    lambda value: not os.path.expanduser(value).startswith("~"),
)

NAMES = Rule(
    "a list of names",
    lambda value: not isinstance(value, str) and all(isinstance(name, str) for name in value),
)
BLOCKS = Rule(
    "a list of 'intra' and 'multi'", lambda value: all(kind in ("intra", "multi") for kind in value)
)
COCO_FORMAT = Rule(
    "a list of [name, annotation file, image folder]", lambda value: all(map(_is_dataset, value))
)
THREE_NUMBERS = Rule("three numbers", lambda value: len(value) == 3 and _are_numbers(value))
DEVIATIONS = Rule(
    "three positive numbers for pixels from 0 to 255: 255 times those for pixels from 0 to 1",
    lambda value: THREE_NUMBERS.allows(value) and min(value) > 0 and max(value) >= 1,
)
SIZES = Rule("sizes in pixels", _are_sizes)
SIDES = Rule(
    "[least, greatest] in pixels",
    lambda value: _are_whole(value, 1) and len(value) == 2 and value[0] <= value[1],
)
STEPS = Rule(
    "positive whole numbers in ascending order",
    lambda value: _are_whole(value, 1) and list(value) == sorted(set(value)),
)
