"""The table of config keys, and how configs are found, read and checked."""

from ..errors import ConfigError
from .device import choose_device
from .keys import KEYS, add_smca_config, flatten, get_cfg, load_cfg
from .model_keys import PRECISION_CHANNELS
from .validation import is_own_model, require_own_model, validate, validate_model
from .yaml_files import read_config_file, read_yaml
from .zoo import config_file, config_names

__all__ = [
    "KEYS",
    "PRECISION_CHANNELS",
    "ConfigError",
    "add_smca_config",
    "choose_device",
    "config_file",
    "config_names",
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
