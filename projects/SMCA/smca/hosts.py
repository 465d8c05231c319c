"""The two hosts of the model, Detectron2 and PyPI packages alone: which one runs, and why."""

import importlib
import importlib.util
from types import ModuleType

from .errors import ConfigError
from .versions import DETECTRON2

INSTALL_DETECTRON2 = f"pip install --no-build-isolation '{DETECTRON2}'"
_REINSTALL = INSTALL_DETECTRON2.replace("install ", "install --force-reinstall --no-deps ", 1)
_PACKAGES = {"detectron2": "d2", "native": "native"}


def has_detectron2() -> bool:
    """Return whether Detectron2 is installed."""
    return importlib.util.find_spec("detectron2") is not None


def choose_engine(wanted: str) -> tuple[str, str]:
    """Return the host to use, "detectron2" or "native", and a line that says why.

    Args:
        wanted: one of them, or "auto" for Detectron2 where it is installed.

    Raises:
        ConfigError: ``wanted`` is Detectron2, which is not installed, or no host.
    """
    if wanted == "auto":
        if has_detectron2():
            return "detectron2", "Engine: detectron2, it is installed"
        return "native", f"Engine: native; Detectron2 is not installed ({INSTALL_DETECTRON2})"
    if wanted not in _PACKAGES:
        raise ConfigError(f"engine is {wanted!r}; it must be 'auto', 'detectron2' or 'native'")
    if wanted == "detectron2":
        _require_detectron2()
    return wanted, f"Engine: {wanted}, as asked for"


def _require_detectron2() -> None:
    if not has_detectron2():
        raise ConfigError(f"Detectron2 is not installed; install it with {INSTALL_DETECTRON2}")


def load(engine: str, module: str) -> ModuleType:
    """Import ``smca.d2.<module>`` or ``smca.native.<module>``.

    Raises:
        ConfigError: Detectron2 is not installed, too old, or built for another torch.
    """
    if engine == "detectron2":
        _require_detectron2()
    try:
        return importlib.import_module(f".{_PACKAGES[engine]}.{module}", __package__)
    except ImportError as error:
        if engine == "native":
            raise
        raise ConfigError(
            f"Detectron2 is installed, but cannot be imported ({error}); --engine native does "
            f"without, and this builds the tested one for the present torch: {_REINSTALL}"
        ) from error


if __name__ == "__main__":
    print(f"Skipped without Detectron2: its host and tests/d2; {INSTALL_DETECTRON2} installs it")  # noqa: T201
