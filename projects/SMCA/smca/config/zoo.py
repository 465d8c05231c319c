"""The config files of configs/ by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import ConfigError

# The folder of an installed package, and the repository's.
_FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[4] / "configs")


def config_names(folder: Path | None = None) -> list[str]:
    """The names of all configs below a folder that are models, in alphabetical order.

    Args:
        folder: None is the model zoo.

    Returns:
        paths from the folder, without ".yaml".
    """
    folder = folder or _zoo()
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
        raise ConfigError(f"the model zoo has no config {name!r}; {hint}")
    return str(_zoo() / f"{name}.yaml")


def _zoo() -> Path:
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the configs are in none of {', '.join(map(str, _FOLDERS))}; install the package anew"
    )
