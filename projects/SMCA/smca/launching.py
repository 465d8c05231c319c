"""What starting a run needs in both hosts: a config that can work, and one message an error."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode

from .checkpoints import CheckpointError
from .config import ConfigError
from .data.coco import DatasetError, count_classes
from .data.shapes import QUICKSTART, missing_shapes, write_shapes_dataset
from .training.solver import scale_to_workers
from .validation import is_own_model, validate

# What a user can mend, by the exit code it ends with.
_EXPLAINED = {
    2: (ConfigError, DatasetError, CheckpointError, FileNotFoundError),
    3: (FloatingPointError,),
}


def guarded(program: Callable[..., int | None], *args: object) -> int:
    """Run ``program(*args)`` and return its exit code; errors a user can mend are one message.

    Every process of a run goes through here, so that the message is the last thing it prints.
    """
    try:
        return program(*args) or 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except tuple(error for errors in _EXPLAINED.values() for error in errors) as error:
        message = str(error)
        if "Original Traceback" in message:  # of a loader process, by torch
            message = message.strip().splitlines()[-1].partition(": ")[2]
        message = f"{type(error).__name__}: {message}"
        print(message, file=sys.stderr, flush=True)
        _tell_torchrun(message)
        return next(code for code, kinds in _EXPLAINED.items() if isinstance(error, kinds))


def _tell_torchrun(message: str) -> None:
    """Give torchrun, where it has started this process, the error that its report will show."""
    if path := os.getenv("TORCHELASTIC_ERROR_FILE"):
        report = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with open(path, "w") as file:
            json.dump({"message": report}, file)


def prepare(cfg: CfgNode, world_size: int = 1) -> CfgNode:
    """Check a merged config, draw the dataset of shapes where it is wanted and missing, count
    classes, choose the device that exists, make OUTPUT_DIR; returns the config frozen.

    Args:
        cfg: the configuration, which is changed.
        world_size: number of processes that will train.

    Raises:
        ConfigError: a value that cannot work, or an OUTPUT_DIR that cannot be written.
        DatasetError: classes to be counted in a dataset that cannot be read.
    """

    def say(text: str) -> None:
        if os.getenv("RANK", "0") == "0":  # of torchrun's processes, the first
            print(text, file=sys.stderr, flush=True)

    validate(cfg)
    batch = scale_to_workers(cfg, world_size).SOLVER.IMS_PER_BATCH
    if batch % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch}; it must be a multiple of the {world_size} processes"
        )
    if folder := missing_shapes(cfg):
        say(f"Drawing {sum(QUICKSTART.values())} images of shapes in {folder}, once")
        write_shapes_dataset(folder, **QUICKSTART)
    if is_own_model(cfg) and cfg.MODEL.SMCA.NUM_CLASSES == 0:
        cfg.MODEL.SMCA.NUM_CLASSES, source = count_classes(cfg)
        say(f"MODEL.SMCA.NUM_CLASSES: {cfg.MODEL.SMCA.NUM_CLASSES}, as in {source}")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        say("MODEL.DEVICE: there is no GPU, the CPU is used")
        cfg.MODEL.DEVICE = "cpu"
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be written: {error}") from error
    cfg.freeze()
    return cfg
