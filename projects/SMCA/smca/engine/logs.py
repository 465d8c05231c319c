"""When both hosts write their logs, `metrics.json` and TensorBoard's files."""

import contextlib
import os

# Iterations from one line of `metrics.json` to the next.
LOG_PERIOD = 20
# TensorBoard writes its file at least every so many seconds, however the run ends.
FLUSH_SECONDS = 1


def is_logged(iteration: int, max_iter: int) -> bool:
    """Return whether a line is logged after ``iteration`` of ``max_iter``."""
    return (iteration + 1) % LOG_PERIOD == 0 or iteration + 1 == max_iter


def drop_cut_line(path: str | os.PathLike) -> None:
    """Remove the last line of a file if a full disk or a failing machine has cut it short.

    A run that resumes would append to it.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
