"""The hosts that tests run in: Detectron2's where it is installed."""

import importlib.util

import pytest

HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
needs_detectron2 = pytest.mark.skipif(not HAS_DETECTRON2, reason="Detectron2 is not installed")
ENGINES = ["native", pytest.param("detectron2", marks=needs_detectron2)]
