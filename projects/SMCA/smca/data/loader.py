"""The data loader of both hosts: plain lists of samples, in processes that are light and quiet."""

from __future__ import annotations

import ctypes
import functools
import gc
import io
import os
import pickle
import sys

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..distributed import end_with_parent
from ..errors import LoaderError
from .reading import Place, make_places, note, take_place


def build_loader(cfg: CfgNode, dataset: Dataset, **arguments: object) -> DataLoader:
    """:func:`list_loader` with DATALOADER.NUM_WORKERS processes."""
    on_gpu = cfg.MODEL.DEVICE != "cpu"
    return list_loader(
        dataset, num_workers=cfg.DATALOADER.NUM_WORKERS, pin_memory=on_gpu, **arguments
    )


def list_loader(
    dataset: Dataset, *, num_workers: int, pin_memory: bool = True, **arguments: object
) -> DataLoader:
    """A loader whose batches are lists of samples.

    Args:
        dataset: of samples.
        num_workers: loader processes; 0: this process itself.
        pin_memory: where there is a GPU, samples are put where it fetches them from.
        arguments: what else :class:`DataLoader` takes, such as ``batch_sampler``.
    """
    if num_workers:
        prepare = functools.partial(_init_worker, make_places(num_workers))
        arguments |= {"worker_init_fn": prepare, "persistent_workers": True}
        if sys.platform == "linux":
            # Trainers of several processes are spawned, and spawning loaders from them is slow.
            arguments["multiprocessing_context"] = "fork"
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=_handed_over if num_workers else _as_list,
        pin_memory=pin_memory and torch.cuda.is_available(),
        # Else each iterator would draw from the generator that training uses.
        generator=torch.Generator(),
        **arguments,
    )


def _as_list(samples: list) -> list:
    return samples


def _handed_over(samples: list) -> list:
    """A batch of a loader process, in the memory that the trainer shares.

    Torch would put it there in a thread of its own, whose errors nobody hears of: the trainer
    would wait for this batch for ever.

    Raises:
        LoaderError: shared memory is full.
    """
    try:
        _Sharing(io.BytesIO()).dump(samples)
    except RuntimeError as error:
        raise LoaderError(
            f"shared memory has no room for a batch ({error}); enlarge /dev/shm (docker run "
            "--shm-size), or lower DATALOADER.NUM_WORKERS"
        ) from error
    note("")
    return samples


class _Sharing(pickle.Pickler):
    """Moves all tensors of an object to shared memory; what it writes is worth nothing."""

    def persistent_id(self, part: object) -> object:
        if not isinstance(part, Tensor):
            return None
        part.share_memory_()
        return True


def _init_worker(places: ctypes.Array[Place], worker: int) -> None:
    # Collections would copy what the trainer has made into each process.
    gc.freeze()
    take_place(places[worker])
    # Also where it waits for a file that never comes.
    end_with_parent()
    # Ctrl-C goes to a process group, and the trainer needs its loaders until it has saved.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
