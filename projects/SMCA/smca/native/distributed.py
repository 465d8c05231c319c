"""The worker that this process is among those that train together; alone it is first of one."""

from __future__ import annotations

import os

import torch.distributed as dist


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
