"""What starting a run needs in both hosts: a config that can work, and one message an error."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode

from .checkpoints import CheckpointError, fetch
from .checkpoints.checkpointer import newest_checkpoint, require_file
from .checkpoints.choosing import Weights, trained_weights
from .config import ConfigError
from .data.coco import DatasetError, count_classes
from .data.reading import LoaderError, explain_end
from .data.shapes import QUICKSTART, missing_shapes, write_shapes_dataset
from .training.solver import scale_to_workers
from .validation import is_own_model, validate


class WorkerError(RuntimeError):
    """A worker has ended or does not answer, and the others cannot go on."""


# What a user can mend, by the exit code it ends with.
_EXPLAINED = {
    1: (WorkerError,),
    2: (ConfigError, DatasetError, CheckpointError, FileNotFoundError, LoaderError),
    3: (FloatingPointError,),
}
# What the system says of a disk.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
_DISK_REMEDY = (
    "give the place the room or the permission it lacks, and run it again; training goes on from "
    "its last checkpoint with --resume"
)
# What torch names the GPUs it was built for: sm_90, sm_90a, compute_120.
_BUILT_FOR = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
# The oldest that pip's own torch has code for, and the build that has some for older ones.
_OLDEST, _OLD_GPUS = (7, 5), " for CUDA 12.6"
# So long torchrun may take to see which worker has ended first.
_TORCHRUN_LOOKS = 2.0


class Explanation(NamedTuple):
    """What is said of an error, and the exit code it has."""

    code: int
    message: str
    follows: bool  # of another worker's


def explain(error: BaseException) -> Explanation | None:
    """One line for errors that a user can mend, and for those that another process has caused.

    None for all others, whose traceback is wanted.
    """
    error = explain_end(error) or _lost_worker(error) or error
    code = next((code for code, kinds in _EXPLAINED.items() if isinstance(error, kinds)), None)
    if code is None and not _is_of_a_file(error):
        return None
    message = str(error)
    if "Original Traceback" in message:  # of a loader process, by torch
        message = message.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, OSError) and error.errno in _DISK:
        message += f"; {_DISK_REMEDY}"
    # Names from files may have what a terminal would obey.
    shown = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message)
    message = f"{type(error).__name__}: {''.join(shown)}"
    return Explanation(code or 2, message, isinstance(error, WorkerError))


def _is_of_a_file(error: BaseException) -> bool:
    """Whether the system, or a reader of images, says what is wrong with a file or a disk."""
    if not isinstance(error, OSError):
        return False
    return bool(error.filename) or error.errno is None or error.errno in _DISK


def _lost_worker(error: BaseException) -> WorkerError | None:
    """What gloo and NCCL raise in the others when a worker has ended or hangs."""
    text = str(error)
    if not (isinstance(error, dist.DistBackendError) or "/gloo/transport/" in text):
        return None
    text = re.sub(r"^\[\S*gloo\S*\] ", "", text)
    me = f"worker {dist.get_rank()} of {dist.get_world_size()}" if dist.is_initialized() else "it"
    if "timed out" in text.lower() or "timeout" in text.lower():
        return WorkerError(f"{me} has waited in vain for another one, which hangs: {text}")
    return WorkerError(
        f"{me} has lost another one, whose message says why, or torchrun's report (SIGKILL there: "
        f"most likely the machine has run out of memory): {text}"
    )


def outcome(program: Callable[..., int | None], *args: object) -> Explanation:
    """Run ``program(*args)``; how it ended. What is not explained is raised."""
    # What Pillow thinks odd in an image file it says of each; what cannot be read is an error.
    warnings.filterwarnings("ignore", module="PIL")
    # A line that a full disk or a closed terminal does not take is not worth a traceback.
    logging.raiseExceptions = False
    try:
        return Explanation(program(*args) or 0, "", follows=False)
    except SystemExit as stop:
        return Explanation(stop.code if isinstance(stop.code, int) else 1, "", follows=False)
    except Exception as error:
        if explanation := explain(error):
            return explanation
        raise


def guarded(program: Callable[..., int | None], *args: object) -> int:
    """Run ``program(*args)`` and return its exit code; errors a user can mend are one message.

    Every program goes through here, so that the message is the last thing it prints.
    """
    try:
        end = outcome(program, *args)
    except Exception:
        _tell_torchrun(traceback.format_exc())
        raise
    if end.message:
        print(end.message, file=sys.stderr, flush=True)
        if end.follows and dist.is_torchelastic_launched():
            time.sleep(_TORCHRUN_LOOKS)
        _tell_torchrun(end.message)
    return end.code


def _tell_torchrun(message: str) -> None:
    """Give torchrun, where it has started this process, the error that its report will show."""
    if path := os.getenv("TORCHELASTIC_ERROR_FILE"):
        report = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with open(path, "w") as file:
            json.dump({"message": report}, file)


def prepare(cfg: CfgNode, world_size: int = 1, args: argparse.Namespace | None = None) -> CfgNode:
    """Check a merged config, choose the device that exists, have the weights at hand, draw the
    dataset of shapes where it is wanted and missing, count classes, make OUTPUT_DIR; returns the
    config frozen.

    Args:
        cfg: the configuration, which is changed. A GPU that MODEL.DEVICE has the number of becomes
            torch's current one.
        world_size: number of processes that will train.
        args: the command line, by which a run needs weights; None: they are not looked at.

    Raises:
        ConfigError: a value that cannot work, a GPU that is not there or that torch has no code
            for, or an OUTPUT_DIR that cannot be written.
        DatasetError: classes to be counted in a dataset that cannot be read.
        CheckpointError, FileNotFoundError: weights that cannot be had.
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
    if cfg.MODEL.DEVICE.startswith("cuda") and not _take_gpu(cfg.MODEL.DEVICE, world_size):
        say("MODEL.DEVICE: there is no GPU, the CPU is used")
        cfg.MODEL.DEVICE = "cpu"
    if args is not None:
        _have_weights(cfg, args, say)
    if folder := missing_shapes(cfg):
        say(f"Drawing {sum(QUICKSTART.values())} images of shapes in {folder}, once")
        write_shapes_dataset(folder, **QUICKSTART)
    if is_own_model(cfg) and cfg.MODEL.SMCA.NUM_CLASSES == 0:
        cfg.MODEL.SMCA.NUM_CLASSES, source = count_classes(cfg)
        say(f"MODEL.SMCA.NUM_CLASSES: {cfg.MODEL.SMCA.NUM_CLASSES}, as in {source}")
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except (OSError, ValueError) as error:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be written: {error}") from error
    cfg.freeze()
    return cfg


def _have_weights(cfg: CfgNode, args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Choose what is evaluated, and fetch what lies at an address before any data is read."""
    resumes = args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if args.eval_only:
        if resumes:
            weights = Weights(newest_checkpoint(cfg.OUTPUT_DIR), "the last one, by --resume")
        else:
            weights = trained_weights(cfg, config_file=args.config_file, opts=args.opts)
        say(str(weights))
        cfg.MODEL.WEIGHTS = weights.path
    elif resumes:
        return
    if cfg.MODEL.WEIGHTS:
        require_file(fetch(cfg.MODEL.WEIGHTS))


def _take_gpu(name: str, world_size: int) -> bool:
    """Make the GPU of a number torch's current one; False where there is no GPU at all.

    Raises:
        ConfigError: see :func:`prepare`.
    """
    try:
        index = torch.device(name).index
    except RuntimeError as error:
        raise ConfigError(
            f"MODEL.DEVICE is {name!r}; it must be 'cuda', 'cuda:1' or 'cpu'"
        ) from error
    if index is not None and world_size > 1:
        raise ConfigError(
            f"MODEL.DEVICE is {name!r}; it must be 'cuda' for {world_size} processes, which have a "
            "GPU each: the environment's CUDA_VISIBLE_DEVICES chooses which"
        )
    if not torch.cuda.is_available():
        return False
    count = torch.cuda.device_count()
    if index is None:
        _require_code_for(range(min(world_size, count)))
        return True
    if index >= count:
        raise ConfigError(
            f"MODEL.DEVICE is {name!r}; there are {count} GPUs here, it must be 'cuda' or one of "
            f"'cuda:0' to 'cuda:{count - 1}'"
        )
    _require_code_for([index])
    # Streams and events are the current device's where none is named.
    torch.cuda.set_device(index)
    return True


def _require_code_for(gpus: Iterable[int]) -> None:
    """Raise a ConfigError if this build of torch has no code that one of the GPUs can run."""
    matches = [_BUILT_FOR.fullmatch(name) for name in torch.cuda.get_arch_list()]
    built = [(m[1], (int(m[2]), int(m[3])), m[4]) for m in matches if m]
    for gpu in gpus if built else ():  # of AMD's GPUs names are other ones
        has = torch.cuda.get_device_capability(gpu)
        if any(_runs_on(has, *code) for code in built):
            continue
        build = _OLD_GPUS if has < _OLDEST else ""
        raise ConfigError(
            f"MODEL.DEVICE is 'cuda', but torch {torch.__version__} has no code for the GPU {gpu}, "
            f"{torch.cuda.get_device_name(gpu)} of compute capability {has[0]}.{has[1]}, only "
            f"{', '.join(torch.cuda.get_arch_list())}; pip uninstall torch torchvision, then "
            f"install those{build} by the command of https://pytorch.org/get-started/locally; or "
            "set MODEL.DEVICE cpu"
        )


def _runs_on(has: tuple[int, int], kind: str, built: tuple[int, int], suffix: str) -> bool:
    """Whether a GPU of compute capability ``has`` can run what was built for another one."""
    if suffix == "a":  # for this one alone
        return built == has
    if kind == "compute":  # compiled for the GPU when it is loaded
        return built <= has
    return built[0] == has[0] and built[1] <= has[1]
