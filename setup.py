"""Packaging: the importable package `smca` lives in projects/SMCA, as Detectron2's projects do."""

import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SOURCE = "projects/SMCA"
VERSION = re.search(r'__version__ = "(.+)"', (HERE / SOURCE / "smca/__init__.py").read_text())[1]
# The minimum versions, there and below, pass the tests.
VERSIONS = runpy.run_path(str(HERE / SOURCE / "smca/versions.py"))

# Its build needs torch: pip install --no-build-isolation -e '.[detectron2]'
DETECTRON2 = f"detectron2 @ {VERSIONS['DETECTRON2']}"
EXPORT = ["onnx>=1.21", "onnxscript>=0.6", "onnxruntime>=1.20"]
TIMM = ["timm>=1.0.31"]
VIDEO = ["opencv-python-headless>=4.8.0.76"]


class BuildWithConfigs(build_py):
    """Copy configs/ into the wheel; an editable install reads them from the repository."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "smca", "configs")
        shutil.rmtree(target, ignore_errors=True)  # left by an earlier build
        shutil.copytree(HERE / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="smca",
    version=VERSION,
    description="SMCA: fast convergence of DETR with spatially modulated co-attention",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=f">={VERSIONS['PYTHON']}",
    package_dir={"": SOURCE},
    packages=find_packages(SOURCE),
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["smca-train = smca.train:main"]},
    install_requires=[
        *(f"{name}>={version}" for name, version in VERSIONS["NEEDED"].items()),
        "numpy>=1.23.5",
        "scipy>=1.9.3",
        # These fix known vulnerabilities of its decoders; 13 does not support Python 3.10.
        "Pillow>=13.0; python_version >= '3.11'",
        "Pillow>=12.3; python_version < '3.11'",
        "PyYAML>=6.0.1",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "faster-coco-eval>=1.8",
        "matplotlib>=3.7",
        "tensorboard>=2.19",
        "tqdm>=4.64.1",
    ],
    extras_require={
        "detectron2": [DETECTRON2],
        "export": EXPORT,
        "timm": TIMM,
        "video": VIDEO,
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.155",
            "pycocotools>=2.0.7",
            "setuptools>=64",
            "wheel",
            *EXPORT,
            *TIMM,
            *VIDEO,
        ],
        "dev": ["ruff", "mypy", "pre-commit", "build"],
    },
)
