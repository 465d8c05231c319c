"""The wheel, installed where nothing of the repository is in reach."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")


def python(*arguments, cwd, **environment):
    """What a Python printed that finds packages in the environment's folders and PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


@pytest.fixture(scope="module")
def source_archive(tmp_path_factory):
    """The source distribution of a copy of the repository, which building does not change."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, copy)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("configs", "projects"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    python("-c", build, copy / "dist", cwd=copy)
    (archive,) = (copy / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def installed(source_archive, tmp_path_factory):
    """``installed(arguments of Python, ...)``: runs it in an empty folder, with the wheel."""
    root = tmp_path_factory.mktemp("installed")
    offline = ("--no-index", "--no-deps")
    build = ("wheel", *offline, "--no-build-isolation", "--wheel-dir", root, source_archive)
    python(*PIP, *build, cwd=root)
    (wheel,) = root.glob("smca-*.whl")
    python(*PIP, "install", *offline, "--target", root / "site", wheel, cwd=root)

    def run(*arguments, folder=None):
        empty = folder or tmp_path_factory.mktemp("empty")
        return python(*arguments, cwd=empty, PYTHONPATH=str(root / "site"))

    run.site = root / "site"
    return run


def test_the_source_archive_has_all_a_wheel_needs(source_archive):
    with tarfile.open(source_archive) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert {Path("configs") / path for path in CONFIGS} <= names


@pytest.mark.slow
def test_the_model_zoo_is_in_the_wheel(installed):
    program = (
        "import json, smca, smca.model_zoo as zoo\n"
        "cfg = zoo.get_config('ablations/table2_fixed')\n"
        "print(json.dumps([smca.__file__, zoo.list(), cfg.MODEL.SMCA.MODULATION.SCALE]))"
    )
    file, names, scale = json.loads(installed("-c", program))
    assert Path(file) == installed.site / "smca/__init__.py"
    models = {path for path in CONFIGS if not path.name.startswith("Base-")}
    assert set(names) == {path.with_suffix("").as_posix() for path in models}
    assert scale == "fixed"
    found = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.py")}
    assert all((installed.site / "smca/configs" / path).is_file() for path in found)


@pytest.mark.slow
def test_the_programs_of_the_wheel(installed):
    """As a module, and as the command that pip makes."""
    for program in (("-m", "smca.train"), (installed.site / "bin/smca-train",)):
        assert "--config NAME" in installed(*program, "--help")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_training_with_the_wheel(installed, processes, shapes, tmp_path):
    data = [[name, *files] for name, files in shapes.items()]
    output = installed(
        *("-m", "smca.train", "--config", "quickstart", "--engine", "native"),
        *("--num-gpus", processes, "DATASETS.COCO_FORMAT", data),
        *("DATASETS.TRAIN", ("train",), "DATASETS.TEST", ("val",), "DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 2),
        folder=tmp_path,
    )
    folder = tmp_path / "output/quickstart"
    assert (folder / "model_final.pth").is_file()
    assert "bbox/AP" in (folder / "metrics.json").read_text()
    # Those of processes that it has started, too.
    assert "FutureWarning" not in output
