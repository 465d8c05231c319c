"""The reference of the config's keys, made from the comments and the code that define them."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from dataclasses import dataclass

from ..config import keys as config
from ..config import validation
from ..modeling.registry import SMCA_DECODER_REGISTRY, SMCA_ENCODER_REGISTRY
from .markdown import markdown_table

_CHOICES = {**validation._CHOICES, **validation._SOLVER_CHOICES}
_AT_LEAST = {**validation._AT_LEAST, **validation._SOLVER_AT_LEAST}
_REGISTRIES = {
    "MODEL.SMCA.ENCODER.NAME": SMCA_ENCODER_REGISTRY,
    "MODEL.SMCA.DECODER.NAME": SMCA_DECODER_REGISTRY,
}
_KINDS = {bool: "`True`, `False`", int: "integer", float: "number", str: "text"}


@dataclass(frozen=True)
class Definition:
    """How the source defines a key, or a node of keys.

    Attributes:
        comment: what stands above it and beside it, in one line; "" where nothing does.
        own: it is the project's own, and not one of Detectron2's.
    """

    comment: str
    own: bool


def definitions() -> dict[str, Definition]:
    """Each key, and each node made without keys, that the functions of `config.py` define.

    The comment of a node that is made with keys, ``node({"ENABLED": False})``, is theirs.
    """
    source = inspect.getsource(config)
    above, beside = _comments(source)
    found = {}
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        own = function.name == config.add_smca_config.__name__
        nodes = {"cfg": ""}  # what variables stand for
        for statement in function.body:
            if not isinstance(statement, ast.Assign):
                continue
            targets = [ast.unparse(target) for target in statement.targets]
            places = [target.partition(".") for target in targets if "." in target]
            paths = [f"{nodes[node]}.{key}".lstrip(".") for node, _, key in places if node in nodes]
            if not paths:
                continue
            nodes |= {target: paths[0] for target in targets if "." not in target}
            lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
            comments = [above.get(statement.lineno), *map(beside.get, lines)]
            definition = Definition(_sentence(" ".join(filter(None, comments))), own)
            keys = [f"{paths[0]}.{key}" for key in _keys_made_with(statement.value)]
            found |= dict.fromkeys(keys or paths[:1], definition)
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by the line of the statement that they stand above, and stand beside."""
    above: dict[int, str] = {}
    beside: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("# ")
        if token.line[: token.start[1]].strip():
            beside[line] = text
        else:
            above[line + 1] = " ".join(filter(None, [above.pop(line, ""), text]))
    return above, beside


def _sentence(text: str) -> str:
    text = text.removeprefix("Ours: ")
    stop = "" if text.endswith(".") or not text else "."
    return text[:1].upper() + text[1:] + stop


def _keys_made_with(value: ast.expr) -> list[str]:
    if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.Dict):
        return [ast.literal_eval(key) for key in value.args[0].keys if key is not None]
    return []


def config_reference() -> str:
    """The whole document: a table a node, in the order of :func:`smca.get_cfg`."""
    found = definitions()
    nodes: dict[str, list[list[str]]] = {}
    for key, default in config.flatten(config.get_cfg()).items():
        meaning, own = found[key].comment, found[key].own
        row = [f"`{key}`", f"`{default!r}`", _allowed(key, default), meaning]
        nodes.setdefault(key.rpartition(".")[0], []).append(
            [*row, "ours" if own else "Detectron2's"]
        )
    parts = [_INTRODUCTION]
    for node, rows in nodes.items():
        about = found[node].comment if node in found else ""
        head = ["key", "default", "may be", "meaning", "whose"]
        table = markdown_table(head, rows, left=len(head))
        parts += [f"## {node or 'Top level'}\n", f"{about}\n" if about else "", table]
    return "\n".join(filter(None, parts))


def _allowed(key: str, default: object) -> str:
    if key in _REGISTRIES:
        return ", ".join(f"`{name}`" for name in sorted(name for name, _ in _REGISTRIES[key]))
    if key in _CHOICES:
        return ", ".join(f"`{choice!r}`" for choice in _CHOICES[key])
    kind = _KINDS.get(type(default), "list")
    return f"{kind}, at least {_AT_LEAST[key]}" if key in _AT_LEAST else kind


_INTRODUCTION = """\
# Configuration

<!-- Generated from smca/config.py by: python tools/make_config_reference.py -->

Every key that a YAML file or `KEY VALUE` on the command line may set, with its default. A config
in `configs/` states what it changes. An unknown key, a value of another type and one that cannot
work are refused with the key's name before training begins.

Keys that are Detectron2's have its names and defaults, and both hosts read them. With
`--engine detectron2` [its other keys](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references)
work too; the native host passes over them in a file that Detectron2 wrote.
"""
