"""Check the versions that this package needs; say in one line which one is missing.

Python, torch and torchvision have to be new enough, and these two of one release. setup.py runs
this file, and so do Pythons that are too old: it takes nothing from the rest of the package.
"""

import importlib
import platform
import re
import sys
from importlib import metadata

PYTHON = "3.10"
# torch before 2.10 can be made to run code by a checkpoint (CVE-2026-24747).
NEEDED = {"torch": "2.10", "torchvision": "0.25"}
# Detectron2 is not on PyPI. This commit passes the tests.
DETECTRON2 = (
    "git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833"
)
_PACKAGES = " ".join(f"'{name}>={n}'" for name, n in NEEDED.items())
_INSTALL = f"pip install --upgrade {_PACKAGES}"
# A build for CPUs and one for CUDA may both be the newest; pip leaves such a pair as it is.
_BOTH = f"pip install --force-reinstall {_PACKAGES}"


class VersionError(ImportError):
    """Something is missing or too old, or does not fit the rest.

    A program that does not catch it prints its one line and ends with code 2.
    """

    def __init__(self, message: str):
        super().__init__(message)
        if not hasattr(sys, "ps1"):  # which interactive sessions have
            sys.excepthook = _in_one_line


def _in_one_line(kind, error, trace) -> None:
    if not issubclass(kind, VersionError):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"{kind.__name__}: {error}\n")
    sys.exit(2)


def check() -> None:
    """Import torch and torchvision, and see that the package can work with them.

    Raises:
        VersionError: it cannot; the message has what is installed, what is needed and a remedy.
    """
    require("Python", platform.python_version(), PYTHON, "make an environment of a newer one")
    for name, needed in NEEDED.items():
        try:
            module = importlib.import_module(name)
        except Exception as error:  # torchvision's depend on how far its torch is from this one
            found = {n: list(metadata.distributions(name=n)) for n in NEEDED}
            listed = ", ".join(f"{n} {d[0].version}" for n, d in found.items() if d)
            reason = " ".join(str(error).split())
            raise VersionError(
                f"smca needs {name}, which cannot be imported ({type(error).__name__}: {reason}); "
                f"installed: {listed or 'none'}; {_BOTH} installs two that fit"
            ) from error
        require(name, module.__version__, needed, _INSTALL)


def require(name: str, installed: str, needed: str, remedy: str) -> None:
    """Raise VersionError if a version, such as ``2.6.0a0+cu124``, is less than the needed one."""
    if _numbers(installed) < _numbers(needed):
        raise VersionError(f"smca needs {name} >= {needed}, not {installed}: {remedy}")


def _numbers(version: str) -> list:
    return [int(number) for number in re.match(r"\d+(\.\d+)*", version).group().split(".")]
