"""What starting a run needs in both hosts: a config that can work, and one message an error."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch.distributed as dist

from ..data.reading import explain_end
from ..errors import CheckpointError, ConfigError, DatasetError, LoaderError, WorkerError

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
