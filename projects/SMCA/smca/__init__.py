"""SMCA: fast convergence of DETR with spatially modulated co-attention (ICCV 2021)."""

import warnings
from typing import TYPE_CHECKING

from .versions import check

# fvcore and Detectron2 decorate with torch.jit, which today's torch deprecates.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
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
    # A model alone needs no code that reads and resizes images.
    if name == "Predictor":
        from .inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
