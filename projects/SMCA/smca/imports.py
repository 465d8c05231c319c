"""Parts of your own: modules and files that ``--import`` names, and what they have registered."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvcore.common.registry import Registry

from .errors import ConfigError

IMPORTED: list[str] = []


def import_all(names: Iterable[str]) -> None:
    """Import modules by their names and Python files by their paths, each once.

    A process that is started later needs :data:`IMPORTED` for the same parts.

    Raises:
        ConfigError: one does not exist, or a file has the name of another module.
    """
    for name in names:
        path = Path(name).expanduser().resolve()
        if path.suffix == ".py":
            _import_file(path)
        elif _exists(name):
            importlib.import_module(name)
        else:
            raise ConfigError(
                f"--import {name}: there is no such module; install it, add its folder to "
                "PYTHONPATH, or give the path of a .py file"
            )
        IMPORTED.append(name)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a package above it, or no name of a module
        return False


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"--import {path}: there is no such file")
    if not path.stem.isidentifier() or path.stem == "__main__":
        raise ConfigError(f"--import {path}: its name cannot be a module's; rename the file")
    found = importlib.util.find_spec(path.stem)
    if found and Path(found.origin or "").resolve() != path:
        raise ConfigError(f"--import {path}: a module {path.stem!r} exists; rename the file")
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def registered(registry: Registry, key: str, name: str, *, others: str = "") -> Any:
    """Return what ``registry`` holds under ``name``, the value of the config key ``key``.

    Args:
        others: words for names that are allowed elsewhere, for the message.

    Raises:
        ConfigError: ``name`` is not registered.
    """
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry))
        raise ConfigError(
            f"{key} is {name!r}; it must be one of {known}{others}; one of your own needs --import"
        )
    return registry.get(name)
