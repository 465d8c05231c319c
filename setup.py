"""Packaging: the importable package `smca` lives in projects/SMCA, as Detectron2's projects do."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SOURCE = "projects/SMCA"
VERSION = re.search(r'__version__ = "(.+)"', (HERE / SOURCE / "smca/__init__.py").read_text())[1]

# Not on PyPI, and its build needs torch: pip install --no-build-isolation -e '.[detectron2]'
DETECTRON2 = (
    "detectron2 @ git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833"
)

setup(
    name="smca",
    version=VERSION,
    description="SMCA: fast convergence of DETR with spatially modulated co-attention",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": SOURCE},
    packages=find_packages(SOURCE),
    package_data={"smca": ["analysis/*.yaml"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy",
        "scipy",
        "Pillow",
        "PyYAML",
        "fvcore>=0.1.5.post20221221",
        "pycocotools>=2.0.7",
        "matplotlib",
        "tensorboard",
    ],
    extras_require={
        "detectron2": [DETECTRON2],
        "test": ["pytest>=8", "pytest-xdist>=3.6"],
    },
)
