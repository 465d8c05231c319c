"""YAML files, read without running code from them."""

from __future__ import annotations

import os
from typing import Any

import yaml

from ..errors import ConfigError


def read_config_file(path: str, *, inside: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a config file, over those of the files that its ``_BASE_`` names.

    Args:
        path: of the file. Its ``_BASE_`` is a path, or a list of paths, relative to its folder.
        inside: the files that have led to it by ``_BASE_``.

    Raises:
        ConfigError: as :func:`read_yaml`; or a ``_BASE_`` is not a path, or leads back to its file.
    """
    if os.path.realpath(path) in inside:
        raise ConfigError(f"{path} leads back to itself by _BASE_")
    loaded = read_yaml(path)
    bases = loaded.pop("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{path} has _BASE_ {base!r}; it must be a path or a list of paths")
        file = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if not os.path.isfile(file):
            raise ConfigError(f"{path} has _BASE_ {base!r}, and there is no file {file!r}")
        _merge(read_config_file(file, inside=(*inside, os.path.realpath(path))), merged)
    _merge(loaded, merged)
    return merged


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: the file is missing, cannot be read, is not YAML, asks for Python objects, has
            a key twice or does not consist of keys.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"config file {os.fspath(path)!r} does not exist")
    try:
        with open(path, "rb") as file:
            content = yaml.load(file, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} cannot be read as YAML: {error.problem}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not keys")
    return content


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that stands twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: list[object] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands here again", key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _merge(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Put the keys of ``source`` over those of ``target``."""
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(value, target[key])
        else:
            target[key] = value
