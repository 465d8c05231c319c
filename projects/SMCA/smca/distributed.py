"""This process among the workers that train together; alone it is the first of one."""

import multiprocessing
import os
import secrets
import signal
import threading
import time
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_LOOKS_EVERY = 1.0  # seconds


def rank() -> int:
    """Return the number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def synchronize() -> None:
    """Wait until all workers get here."""
    if dist.is_initialized():
        dist.barrier()


def gather(part: T) -> list[T]:
    """Return the parts of all workers to the first one; the others get an empty list."""
    if world_size() == 1:
        return [part]
    parts = [part] * world_size() if rank() == 0 else None
    dist.gather_object(part, parts)
    return parts or []


def all_gather(part: T) -> list[T]:
    """Return the parts of all workers to each of them."""
    parts = [part] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, part)
    return parts


def mean_over_workers(values: Tensor) -> Tensor:
    """Return the mean of ``values`` over the workers, without a gradient."""
    if world_size() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def shared_seed(seed: int) -> int:
    """Return ``seed``, or, if it is negative, a seed that the first worker draws for all."""
    if seed >= 0:
        return seed
    return all_gather(secrets.randbits(32))[0]


def end_with_parent(*, grace: float = 0.0) -> None:
    """End this process once its parent has ended, even while it waits for a file or a process.

    Args:
        grace: seconds between SIGTERM, on which training saves a checkpoint, and the hard end;
            0: the hard end at once.
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
