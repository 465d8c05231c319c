"""The data loaders of both hosts, whose batches are plain lists of samples."""

import ctypes
import functools
import gc
import io
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..distributed import end_with_parent, rank, world_size
from ..errors import LoaderError
from ..imports import registered
from .dataset import EvaluationDataset, TrainingDataset
from .reading import Note, claim_note, make_notes, note
from .sampler import SMCA_SAMPLER_REGISTRY


def build_train_loader(
    *,
    dataset: Sequence[dict],
    mapper: Callable[[dict], object],
    total_batch_size: int,
    sampler: str = "TrainingSampler",
    aspect_ratio_grouping: bool = True,
    num_workers: int = 4,
    seed: int = 0,
    start: int = 0,
) -> DataLoader:
    """Build an endless loader of this worker's shares of the global batches.

    Args:
        dataset: records, see :mod:`smca.data.coco`.
        mapper: maps a record to a sample; may draw from the generators of Python, NumPy and torch.
        total_batch_size: images of a batch, over all workers.
        sampler: a name in :data:`~smca.data.sampler.SMCA_SAMPLER_REGISTRY`.
        aspect_ratio_grouping: put wide images and all others into batches of their own.
        num_workers: see :func:`list_loader`.
        seed: of order and augmentation, the same on all workers.
        start: the iteration to begin at.

    Raises:
        ConfigError: there is no such sampler, or the batch is not a multiple of the number of
            workers.
    """
    chosen = registered(SMCA_SAMPLER_REGISTRY, "DATALOADER.SAMPLER_TRAIN", sampler)
    batches = chosen(
        dataset,
        groups=[int(aspect_ratio_grouping and r["width"] <= r["height"]) for r in dataset],
        batch_size=total_batch_size,
        rank=rank(),
        world_size=world_size(),
        seed=seed,
        start=start,
    )
    samples = TrainingDataset(dataset, mapper)
    return list_loader(samples, num_workers=num_workers, batch_sampler=batches)


def build_test_loader(
    *, dataset: Sequence[dict], mapper: Callable[[dict], object], num_workers: int = 4
) -> DataLoader:
    """Build a loader of this worker's part of the records, in order, one image a batch.

    The arguments are those of :func:`build_train_loader`.
    """
    begin, end = (len(dataset) * place // world_size() for place in (rank(), rank() + 1))
    samples = EvaluationDataset(dataset, mapper)
    return list_loader(samples, num_workers=num_workers, sampler=range(begin, end))


def list_loader(dataset: Dataset, *, num_workers: int, **arguments: Any) -> DataLoader:
    """Build a loader whose batches are lists of samples, pinned if this process uses a GPU.

    Args:
        num_workers: number of loader processes; with 0 this process loads.
        arguments: further arguments of :class:`DataLoader`, such as ``batch_sampler``.
    """
    if num_workers:
        prepare = functools.partial(_init_worker, make_notes(num_workers))
        arguments |= {"worker_init_fn": prepare, "persistent_workers": True}
        if sys.platform == "linux":
            # Trainers of several processes are spawned, and spawning loaders from them is slow.
            arguments["multiprocessing_context"] = "fork"
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=_share if num_workers else list,
        pin_memory=torch.cuda.is_initialized(),
        # Otherwise each iterator would draw from the generator that training uses.
        generator=torch.Generator(),
        **arguments,
    )


def _share(samples: list) -> list:
    """Move a batch of a loader process to the memory that it shares with the trainer.

    Torch would do so in a thread whose errors nobody sees: the trainer would wait for the batch
    forever.

    Raises:
        LoaderError: shared memory is full.
    """
    try:
        _SharingPickler(io.BytesIO()).dump(samples)
    except RuntimeError as error:
        raise LoaderError(
            f"shared memory has no room for a batch ({error}); enlarge /dev/shm (docker run "
            "--shm-size), or lower DATALOADER.NUM_WORKERS"
        ) from error
    note("")
    return samples


class _SharingPickler(pickle.Pickler):
    """Moves all tensors of an object to shared memory; the pickle itself is not used."""

    def persistent_id(self, part: object) -> object:
        if not isinstance(part, Tensor):
            return None
        part.share_memory_()
        return True


def _init_worker(notes: ctypes.Array[Note], worker: int) -> None:
    # Garbage collections would copy the trainer's objects into each process.
    gc.freeze()
    claim_note(notes[worker])
    # Even if it waits for a file that never comes.
    end_with_parent()
    # Ctrl-C goes to a process group, and the trainer needs its loaders until it has saved.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
