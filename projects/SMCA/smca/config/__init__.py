"""The table of config keys, and how configs are found, read and checked."""

from ..errors import ConfigError
from .files import config_file, config_names, flatten, read_config_file
from .keys import KEYS, add_smca_config, get_cfg, load_cfg, register_keys
from .model_keys import PRECISION_CHANNELS
from .rules import Own
from .validation import (
    choose_device,
    is_own_model,
    is_tsp,
    pretrains,
    require_own_model,
    validate,
    validate_model,
)

__all__ = [
    "KEYS",
    "PRECISION_CHANNELS",
    "ConfigError",
    "Own",
    "add_smca_config",
    "choose_device",
    "config_file",
    "config_names",
    "flatten",
    "get_cfg",
    "is_own_model",
    "is_tsp",
    "load_cfg",
    "pretrains",
    "read_config_file",
    "register_keys",
    "require_own_model",
    "validate",
    "validate_model",
]
