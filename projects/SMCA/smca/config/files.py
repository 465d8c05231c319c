"""Config files: found by their names in the model zoo, and read without running code from them."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

# The model zoo: the folder configs/ of an installed package, or else the repository's.
_ZOO = Path(__file__).parents[1] / "configs"
if not _ZOO.is_dir():
    _ZOO = Path(__file__).parents[4] / "configs"


def config_names(folder: Path = _ZOO) -> list[str]:
    """The names of all configs below a folder that are models, sorted: paths without ".yaml"."""
    return [
        file.relative_to(folder).with_suffix("").as_posix()
        for file in sorted(folder.rglob("*.yaml"))
        if not file.name.startswith("Base-")
    ]


def config_file(name: str) -> str:
    """The path of a config of the model zoo, by its name with or without ".yaml".

    Raises:
        ConfigError: there is none of this name; the nearest are named.
    """
    name = name.removesuffix(".yaml")
    known = config_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "smca.model_zoo.list() names them"
        raise ConfigError(f"the model zoo ({_ZOO}) has no config {name!r}; {hint}")
    return str(_ZOO / f"{name}.yaml")


def read_config_file(path: str | os.PathLike, *, inside: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a YAML file by whole keys, over those of the files that its ``_BASE_`` names.

    Args:
        path: of the file. Its ``_BASE_`` is a path, or a list of paths, relative to its folder.
        inside: the files that have led to it by ``_BASE_``.

    Raises:
        ConfigError: the file or a file of its ``_BASE_`` cannot be used; the message says why.
    """
    path = os.path.expanduser(path)
    if os.path.realpath(path) in inside:
        raise ConfigError(f"{path} leads back to itself by _BASE_")
    content = _read_yaml(path)
    bases = content.pop("_BASE_", [])
    values: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{path} has _BASE_ {base!r}; it must be a path or a list of paths")
        file = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if not os.path.isfile(file):
            raise ConfigError(f"{path} has _BASE_ {base!r}, and there is no file {file!r}")
        values |= read_config_file(file, inside=(*inside, os.path.realpath(path)))
    return values | flatten(content)


def _read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    if not os.path.isfile(path):
        known = [name for name in config_names() if Path(name).name == Path(path).stem]
        hint = f"; did you mean {config_file(known[0])}?" if known else ""
        raise ConfigError(f"config file {os.fspath(path)!r} does not exist{hint}")
    if os.fspath(path).endswith(".py"):
        raise ConfigError(f"{path} is a LazyConfig; tools/lazyconfig_train_net.py trains it")
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


def flatten(cfg: Mapping, prefix: str = "") -> dict[str, Any]:
    """The values of a nested config by whole keys: ``{"MODEL.SMCA.NHEADS": 8, ...}``."""
    flat = {}
    for key, value in cfg.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
