"""Choosing the file to use a trained model with: for evaluation, prediction and pictures."""

import contextlib
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from fvcore.common.config import CfgNode

from ..config import read_config_file
from ..errors import ConfigError
from .checkpointer import newest_checkpoint

# Addresses and files of ResNets trained on ImageNet, which are not detectors.
_BACKBONE = re.compile(r"/ImageNetPretrained/|(^|/)resnet\d+-[0-9a-f]{8}\.pth$")


class Weights(NamedTuple):
    """A checkpoint by its path or address, and why it was chosen."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"Weights: {self.path} ({self.why})"


def trained_weights(
    cfg: CfgNode, *, config_file: str = "", opts: Sequence[object] = (), named: str = ""
) -> Weights:
    """Choose the checkpoint to use a config's model with.

    The first of these: the checkpoint that the user names, by ``named`` or by the changes of the
    config, ``opts``; if MODEL.WEIGHTS is only what a run started from, the run's own,
    ``last_checkpoint`` or ``model_final.pth`` beside ``config_file`` or in OUTPUT_DIR;
    MODEL.WEIGHTS.

    Raises:
        ConfigError: there is none.
        CheckpointError: a run has no whole checkpoint.
    """
    start = cfg.MODEL.WEIGHTS
    keys = {str(opt).partition("=")[0] for opt in opts}
    if named or (start and keys & {"MODEL.WEIGHTS", "train.init_checkpoint"}):
        return _trained(Weights(named or start, "as named"))
    folders = [os.path.dirname(config_file)] if config_file else []
    for folder in dict.fromkeys([*folders, cfg.OUTPUT_DIR]):
        if _only_starts(start, folder) and (newest := newest_checkpoint(folder)):
            why = "the last checkpoint of the run" + (f", and not {start}" if start else "")
            return Weights(newest, why)
    return _trained(Weights(start, "MODEL.WEIGHTS of the config"))


def _trained(weights: Weights) -> Weights:
    if weights.path and not _BACKBONE.search(weights.path):
        return weights
    what = f"{weights.path} is a backbone alone" if weights.path else "MODEL.WEIGHTS is empty"
    raise ConfigError(
        f"there are no trained weights: {what}; name a checkpoint, such as a run's "
        "OUTPUT_DIR/model_final.pth"
    )


def _only_starts(start: str, folder: str) -> bool:
    """Whether the run in ``folder`` started from MODEL.WEIGHTS, and that is all it is."""
    if not start or _BACKBONE.search(start):
        return True
    if os.path.abspath(os.path.dirname(start)) == os.path.abspath(folder):
        return False  # one of the run's own
    with contextlib.suppress(ConfigError):  # its config.yaml is missing or damaged
        values = read_config_file(os.path.join(folder, "config.yaml"))
        begun = values.get("MODEL.WEIGHTS", values.get("train.init_checkpoint"))  # or a LazyConfig
        return begun is not None and os.path.realpath(str(begun)) == os.path.realpath(start)
    return False
