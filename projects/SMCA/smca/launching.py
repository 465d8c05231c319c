"""What starting a run needs in both hosts: the config, one message an error, signals passed on."""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.multiprocessing as mp
from fvcore.common.config import CfgNode

from .checkpoints import CheckpointError
from .config import ConfigError
from .data.coco import DatasetError
from .training.solver import scale_to_workers
from .validation import validate

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
        print(f"{type(error).__name__}: {message}", file=sys.stderr, flush=True)
        return next(code for code, kinds in _EXPLAINED.items() if isinstance(error, kinds))


def prepare(cfg: CfgNode, world_size: int = 1) -> CfgNode:
    """Check a merged config, choose the device that exists, make OUTPUT_DIR; returns it frozen.

    Args:
        cfg: the configuration, which is changed.
        world_size: number of processes that will train.

    Raises:
        ConfigError: a value that cannot work, or an OUTPUT_DIR that cannot be written.
    """
    validate(cfg)
    batch = scale_to_workers(cfg, world_size).SOLVER.IMS_PER_BATCH
    if batch % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch}; it must be a multiple of the {world_size} processes"
        )
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        print("MODEL.DEVICE: there is no GPU, the CPU is used", file=sys.stderr, flush=True)
        cfg.MODEL.DEVICE = "cpu"
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be written: {error}") from error
    cfg.freeze()
    return cfg


def run_processes(start: Callable[[], None], cfg: CfgNode, args: argparse.Namespace) -> int:
    """Start ``args.num_gpus`` processes, wait for them, and return the first exit code not 0.

    Args:
        start: starts the processes and waits for them, as Detectron2's ``launch`` does.
        cfg: the configuration.
        args: what :func:`smca.cli.argument_parser` read.

    Raises:
        ConfigError: there are not so many GPUs, or the machines have no address to meet at.
    """
    if cfg.MODEL.DEVICE.startswith("cuda"):
        if args.num_gpus > torch.cuda.device_count():
            raise ConfigError(
                f"--num-gpus is {args.num_gpus}; there are {torch.cuda.device_count()}"
            )
    else:
        # Where a GPU is seen, Detectron2 takes NCCL.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Each process has its share of the cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // args.num_gpus)))
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--machine-rank is {args.machine_rank}; the machines are 0 to {args.num_machines - 1}"
        )
    if args.dist_url == "auto" and args.num_machines > 1:
        raise ConfigError("--dist-url must be tcp://host:port of machine 0 for many machines")
    # That it ends the other processes after one has failed is no news.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with _signals_to_children():
        try:
            start()
        except mp.ProcessExitedException as error:
            if error.exit_code >= 0:
                return error.exit_code
            print(error, file=sys.stderr, flush=True)
            return 128 - error.exit_code
    return 0


@contextlib.contextmanager
def _signals_to_children() -> Iterator[None]:
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
