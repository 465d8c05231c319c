"""YAML files, read without running code from them and within bounds."""

from __future__ import annotations

import os
from typing import Any

import yaml

from ..errors import ConfigError

_BYTES = 2**18
_VALUES = 100_000  # what aliases (*name) stand for is counted each time
_FILES = 50


def read_config_file(path: str) -> dict[str, Any]:
    """The keys of a config file, over those of the files that its ``_BASE_`` names.

    Args:
        path: of the file. What ``_BASE_`` names, a path or several, is relative to its folder.

    Raises:
        ConfigError: as :func:`read_yaml`, or a ``_BASE_`` that is no path or leads back.
    """
    return _with_bases(path, [])


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a YAML file, whose keys are all names.

    Raises:
        ConfigError: no such file; one that is no YAML mapping, asks for Python objects, has a key
            twice, or is larger than any config, with the line where there is one.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"config file {os.fspath(path)!r} does not exist")
    try:
        with open(path, "rb") as file:
            text = file.read(_BYTES + 1)
        if len(text) > _BYTES:
            raise ConfigError(f"{path} is larger than {_BYTES} bytes, which no config is")
        loader = _Loader(text)
        loader.name = os.fspath(path)
        node = loader.get_single_node()
        if node is None:
            return {}
        if _count(node, {}) > _VALUES:
            raise ConfigError(
                f"{path} has more than {_VALUES} values, with its aliases written out"
            )
        content = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} cannot be read as YAML: {error.problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} cannot be read as YAML: it is nested too deeply") from error
    except ConfigError:
        raise
    except Exception as error:  # Values that are not of their tag fail in many ways.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path} cannot be read as YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not keys")
    return content


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses what it would pass over or what is no config's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is no name", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r:.80} stands here again", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node has, with all aliases written out.

    Args:
        node: of a document.
        known: the numbers of nodes that have been counted; 0 of those around this one.
    """
    if node not in known:
        known[node] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[node] = 1 + sum(_count(part, known) for part in parts)
    elif not known[node]:
        raise yaml.composer.ComposerError(
            None, None, "an alias stands inside of what it names", node.start_mark
        )
    return known[node]


def _with_bases(path: str, opened: list[str]) -> dict[str, Any]:
    opened.append(path)
    if len(opened) > _FILES:
        raise ConfigError(
            f"{opened[0]} takes in more than {_FILES} files by _BASE_; does {path} lead back to it?"
        )
    loaded = read_yaml(path)
    bases = loaded.pop("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "\0" in base:
            raise ConfigError(
                f"{path} has _BASE_ {base!r:.80}; it must be a path, or a list of such"
            )
        file = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if not os.path.isfile(file):
            raise ConfigError(
                f"{path} has _BASE_ {base!r:.200}, and there is no file {file!r:.200}"
            )
        _merge(_with_bases(file, opened), merged)
    _merge(loaded, merged)
    return merged


def _merge(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Put the keys of ``source`` over those of ``target``."""
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(value, target[key])
        else:
            target[key] = value
