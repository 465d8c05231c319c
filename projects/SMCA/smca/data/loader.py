"""The data loader of both hosts: plain lists of samples, in processes that are light and quiet."""

from __future__ import annotations

import os
import sys

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Dataset


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
        arguments |= {"worker_init_fn": _init_worker, "persistent_workers": True}
        if sys.platform == "linux":
            # Trainers of several processes are spawned, and spawning loaders from them is slow.
            arguments["multiprocessing_context"] = "fork"
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=_as_list,
        pin_memory=pin_memory and torch.cuda.is_available(),
        # Else each iterator would draw from the generator that training uses.
        generator=torch.Generator(),
        **arguments,
    )


def _as_list(samples: list) -> list:
    return samples


def _init_worker(worker: int) -> None:
    # Ctrl-C goes to a process group, and the trainer needs its loaders until it has saved.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
