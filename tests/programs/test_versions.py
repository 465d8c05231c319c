"""What is missing, too old, or of another release is said in one line before anything else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools  # noqa: F401 - brings distutils

from smca import versions

ROOT = Path(__file__).parents[2]
PACKAGES = "'torch>=2.10' 'torchvision>=0.25'"
INSTALL = f"pip install --upgrade {PACKAGES}"
# pip would leave a torch for CPUs and a torchvision for CUDA, both the newest, as they are.
REINSTALL = f"pip install --force-reinstall {PACKAGES} installs two that fit"


@pytest.mark.parametrize(
    "version", ["2.10", "2.10.0", "2.10.0a0+git1a2b3c", "2.10.1.post2", "2.15.0+cu130", "3.0"]
)
def test_what_is_new_enough(version):
    versions.require("torch", version, "2.10", INSTALL)


@pytest.mark.parametrize("version", ["2.9", "2.9.1+cu124", "1.13.1", "2.0.0.dev20250101", "2"])
def test_what_is_too_old(version, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ImportError) as caught:
        versions.require("torch", version, "2.10", INSTALL)
    assert str(caught.value) == f"smca needs torch >= 2.10, not {version}: {INSTALL}"


def run(stubs, *command):
    """Run Python with these modules, ``{name: content}``, in the place of those installed."""
    folder, content = stubs
    for name, text in content.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    paths = [str(folder), str(ROOT / "projects" / "SMCA")]
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


OLD = {"torch": "__version__ = '2.9.1+cpu'"}
TORCH = {"torch": "__version__ = '2.10.0'"}
CASES = {
    "old torch": (OLD, f"smca needs torch >= 2.10, not 2.9.1+cpu: {INSTALL}"),
    "old torchvision": (
        TORCH | {"torchvision": "__version__ = '0.24.1'"},
        f"smca needs torchvision >= 0.25, not 0.24.1: {INSTALL}",
    ),
    "no torch": (
        {"torch": "raise ModuleNotFoundError(\"No module named 'torch'\")"},
        "smca needs torch, which cannot be imported (ModuleNotFoundError: No module named 'torch')",
    ),
    "another torchvision": (
        TORCH | {"torchvision": "raise RuntimeError('operator torchvision::nms\\ndoes not exist')"},
        "smca needs torchvision, which cannot be imported (RuntimeError: operator torchvision::nms "
        "does not exist); installed: torch",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_program_says_it_in_one_line(case, tmp_path):
    stubs, message = CASES[case]
    done = run((tmp_path, stubs), ROOT / "train_net.py", "--config", "quickstart")
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"VersionError: {message}")
    assert done.stderr.endswith(f"{REINSTALL if 'cannot be imported' in message else INSTALL}\n")


@pytest.mark.parametrize(
    "command", [["-m", "smca.train"], [ROOT / "demo.py"], ["-c", "import smca"]]
)
def test_every_program_does(command, tmp_path):
    done = run((tmp_path, OLD), *command)
    assert (done.returncode, done.stderr) == (2, f"VersionError: {CASES['old torch'][1]}\n")


def test_who_imports_the_package_may_catch_it(tmp_path):
    """It is an ImportError, and errors that come later are shown as ever."""
    program = "try:\n  import smca\nexcept ImportError as e:\n  print(e)\n1 / 0"
    done = run((tmp_path, OLD), "-c", program)
    assert done.stdout == f"{CASES['old torch'][1]}\n"
    assert done.returncode == 1 and done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.slow
def test_a_detectron2_that_is_not_there(tmp_path):
    program = "import runpy, sys; sys.modules['detectron2'] = None; sys.argv = sys.argv[1:]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    flags = ("--config", "quickstart", "--engine", "detectron2")
    done = run((tmp_path, {}), "-c", program, ROOT / "train_net.py", *flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    expected = "ConfigError: Detectron2 is not installed; install it with pip install .*git"
    assert re.match(expected, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "engine"), [("train_net.py", "auto"), ("demo.py", "detectron2")]
)
def test_a_detectron2_of_another_torch(program, engine, tmp_path):
    """What a compiled part says that was built for another one; or a name that is not there yet."""
    broken = "raise ImportError('_C.so: undefined symbol: _ZN3c106detail')"
    flags = ["--config-file", ROOT / "configs/quickstart.yaml", "--engine", engine]
    if program == "demo.py":
        flags += ["--input", ROOT / "docs/co_attention.jpg", "--output", tmp_path / "out"]
    done = run((tmp_path, {"detectron2": broken}), ROOT / program, *flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "ConfigError: Detectron2 is installed, but cannot be imported (_C.so: undefined symbol: "
        "_ZN3c106detail); --engine native does without"
    )
    assert "pip install --force-reinstall" in line


def test_every_requirement_has_its_lowest_version():
    from distutils.core import run_setup

    setup = run_setup(str(ROOT / "setup.py"), stop_after="init")
    assert setup.python_requires == f">={versions.PYTHON}"
    needed = [f"{name}>={version}" for name, version in versions.NEEDED.items()]
    assert setup.install_requires[: len(needed)] == needed
    bound = re.compile(r"[\w-]+>=[\d.]+(post\d+)?(; python_version .*)?")
    assert all(map(bound.fullmatch, setup.install_requires))
