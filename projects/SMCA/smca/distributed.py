"""The worker that this process is among those that train together; alone it is first of one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import torch.distributed as dist

_LOOKS_EVERY = 1.0  # seconds


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def synchronize() -> None:
    """Wait until all workers are here."""
    if dist.is_initialized():
        dist.barrier()


def shared_seed(seed: int) -> int:
    """``seed``, or when it is negative one drawn by the first worker for all."""
    if seed >= 0:
        return seed
    drawn = [int.from_bytes(os.urandom(4), "little")]
    if world_size() > 1:
        dist.broadcast_object_list(drawn)
    return drawn[0]


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
