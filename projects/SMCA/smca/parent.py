"""Processes that end when the one that has started them does, however that ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

_LOOKS_EVERY = 1.0  # seconds


def end_with_parent(*, grace: float = 0.0) -> None:
    """Have this process end once its parent has.

    A thread looks, so that a process ends too that waits for a file or for another process.

    Args:
        grace: seconds between SIGTERM, which may save a checkpoint, and a hard end; 0 for the
            latter at once.
    """
    started_by = multiprocessing.parent_process()
    parent = started_by.pid if started_by else os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS_EVERY)
        if grace:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, name="watches the parent", daemon=True).start()
