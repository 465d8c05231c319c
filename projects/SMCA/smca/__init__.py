"""SMCA: fast convergence of DETR with spatially modulated co-attention (ICCV 2021)."""

from .config import add_smca_config, get_cfg
from .modeling import build_detector

__version__ = "0.1.0"

__all__ = ["__version__", "add_smca_config", "build_detector", "get_cfg"]
