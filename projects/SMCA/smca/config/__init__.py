"""Every configuration key, how configs are read, and what their values may be."""

from ..errors import ConfigError
from .keys import PRECISION_CHANNELS, add_smca_config, flatten, get_cfg, load_cfg
from .validation import is_own_model, require_own_model, validate, validate_model
from .yaml_files import read_config_file, read_yaml

__all__ = [
    "PRECISION_CHANNELS",
    "ConfigError",
    "add_smca_config",
    "flatten",
    "get_cfg",
    "is_own_model",
    "load_cfg",
    "read_config_file",
    "read_yaml",
    "require_own_model",
    "validate",
    "validate_model",
]
