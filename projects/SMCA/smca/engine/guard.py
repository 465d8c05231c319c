"""Errors that a user can mend, told in one line."""

import errno
import io
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable

import torch.distributed as dist

from ..data.reading import explain_end
from ..distributed import rank, world_size
from ..errors import CheckpointError, ConfigError, DatasetError, LoaderError, WorkerError

# Errors that a user can mend, by the exit code that they end a program with. An OSError says what
# is wrong with a disk or a file.
_EXPLAINED = {
    1: (WorkerError,),
    2: (ConfigError, DatasetError, CheckpointError, LoaderError, OSError),
    3: (FloatingPointError,),
}
# Errors that the system reports about a disk.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
_DISK_REMEDY = (
    "give the place the room or the permission it lacks, and run it again; training goes on from "
    "its last checkpoint with --resume"
)
# A launcher needs at most so many seconds to see which worker has ended first.
_LAUNCHER_LOOKS = 2.0


def explain(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code of an error that a user can mend, or that another process has caused,
    and the line that explains it; None for all other errors, whose traceback is wanted.
    """
    error = explain_end(error) or lost_worker(error) or error
    code = next((code for code, kinds in _EXPLAINED.items() if isinstance(error, kinds)), None)
    if code is None:
        return None
    message = str(error)
    if "Original Traceback" in message:  # torch wraps the errors of loader processes in text
        message = message.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, OSError) and error.errno in _DISK:
        message += f"; {_DISK_REMEDY}"
    # File names and class names may hold characters that a terminal obeys.
    shown = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message)
    return code, f"{type(error).__name__}: {''.join(shown)}"


def lost_worker(error: BaseException) -> WorkerError | None:
    """Translate the errors that gloo and NCCL raise in the others when a worker ends or hangs."""
    text = str(error)
    if not (isinstance(error, dist.DistBackendError) or "/gloo/transport/" in text):
        return None
    text = re.sub(r"^\[\S*gloo\S*\] ", "", text)
    me = f"worker {rank()} of {world_size()}"
    if "timed out" in text.lower() or "timeout" in text.lower():
        return WorkerError(f"{me} waited in vain for another one, which hangs: {text}")
    return WorkerError(
        f"{me} has lost another one, whose message says why, or torchrun's report (SIGKILL there: "
        f"most likely the machine has run out of memory): {text}"
    )


def guarded(program: Callable[..., int | None], *args: object) -> int:
    """Run ``program(*args)`` and return its exit code; errors a user can mend become one line.

    Every program goes through here, so that this line is the last thing it prints.
    """
    # A name that the terminal cannot show is not worth an error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Pillow warns of every oddity in an image file; files that it cannot read are errors.
    warnings.filterwarnings("ignore", module="PIL")
    # A log line that a full disk or a closed terminal refuses is not worth a traceback.
    logging.raiseExceptions = False
    try:
        return program(*args) or 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        explanation = explain(error)
        if explanation is None:
            _tell_torchrun(traceback.format_exc())
            raise
        code, message = explanation
        lost = message.startswith(WorkerError.__name__)
        if lost and multiprocessing.parent_process():
            # The launcher ends this worker meanwhile, and says which one was the first.
            time.sleep(_LAUNCHER_LOOKS)
        print(message, file=sys.stderr, flush=True)
        if lost and dist.is_torchelastic_launched():
            time.sleep(_LAUNCHER_LOOKS)
        _tell_torchrun(message)
        return code


def _tell_torchrun(message: str) -> None:
    """Give torchrun, if it has started this process, the error for its report."""
    if path := os.getenv("TORCHELASTIC_ERROR_FILE"):
        report = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with open(path, "w") as file:
            json.dump({"message": report}, file)
