"""The two hosts of the model: which one runs, and why."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import ConfigError

# The commit the Detectron2 host is tested with.
DETECTRON2 = (
    "git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833"
)
INSTALL_DETECTRON2 = f"pip install --no-build-isolation '{DETECTRON2}'"
_REINSTALL = INSTALL_DETECTRON2.replace("install ", "install --force-reinstall --no-deps ", 1)


def choose_engine(wanted: str) -> tuple[str, str]:
    """The host to use and why, in one line.

    Raises:
        ConfigError: Detectron2 is asked for and not installed.
    """
    if wanted == "native":
        return "native", "Engine: native, as asked for"
    if importlib.util.find_spec("detectron2") is not None:
        reason = "as asked for" if wanted == "detectron2" else "it is installed"
        return "detectron2", f"Engine: detectron2, {reason}"
    if wanted == "detectron2":
        raise ConfigError(f"Detectron2 is not installed; install it with {INSTALL_DETECTRON2}")
    return "native", f"Engine: native; Detectron2 is not installed ({INSTALL_DETECTRON2})"


def detectron2_host(module: str) -> ModuleType:
    """``smca.d2.<module>``, of a Detectron2 that is installed.

    Raises:
        ConfigError: it is too old, or built for another torch.
    """
    try:
        return importlib.import_module(f".d2.{module}", __package__)
    except ImportError as error:
        raise ConfigError(
            f"Detectron2 is installed, but cannot be imported ({error}); --engine native does "
            f"without, and this builds the tested one for the present torch: {_REINSTALL}"
        ) from error


if __name__ == "__main__":
    print(f"Skipped without Detectron2: its host and tests/d2; {INSTALL_DETECTRON2} installs it")  # noqa: T201
