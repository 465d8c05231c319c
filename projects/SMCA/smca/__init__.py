"""SMCA: fast convergence of DETR with spatially modulated co-attention (ICCV 2021)."""

from typing import TYPE_CHECKING

from .versions import check

check()

from . import model_zoo  # noqa: E402
from .config import add_smca_config, get_cfg  # noqa: E402
from .modeling import build_detector  # noqa: E402

if TYPE_CHECKING:
    from .inference.predictor import Predictor

__version__ = "0.1.0"

__all__ = [
    "Predictor",
    "__version__",
    "add_smca_config",
    "build_detector",
    "get_cfg",
    "model_zoo",
]


def __getattr__(name: str) -> object:
    # Reading and resizing images is nothing that a model alone needs.
    if name == "Predictor":
        from .inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
