"""What starting a run needs in both hosts: the config, one message an error, signals passed on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator

import torch
from fvcore.common.config import CfgNode

from .config import ConfigError, validate


def prepare(cfg: CfgNode) -> CfgNode:
    """Check a merged config, choose the device that exists, make OUTPUT_DIR; returns it frozen.

    Raises:
        ConfigError: a value that cannot work, or an OUTPUT_DIR that cannot be written.
    """
    validate(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be made: {error}") from error
    cfg.freeze()
    return cfg


@contextlib.contextmanager
def signals_to_children() -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the worker processes and wait for them, instead of dying."""

    def forward(number: int, _frame) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)

    previous = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
