"""Images and boxes of the native host: reading, augmentation (section 3) and loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Subset

from ..data.coco import CocoDataset, training_records
from ..data.dataset import (
    EvaluationDataset,
    TrainingDataset,
    aspect_groups,
)
from ..data.loader import build_loader
from ..data.mapper import NativeMapper
from ..data.sampler import TrainingBatches


def build_train_loader(
    cfg: CfgNode,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int,
    start: int = 0,
    like: Mapping[str, Sequence[str]] | None = None,
) -> DataLoader:
    """An endless loader of ``list[Sample]``, this worker's shares of the global batches.

    Args:
        rank, world_size: of this training process.
        seed: of order and augmentation, the same on all workers.
        start: iteration to begin at.
        like: see :func:`~smca.data.coco.training_records`.

    Raises:
        DatasetError: see :func:`~smca.data.coco.training_records`.
        ConfigError: SOLVER.IMS_PER_BATCH is no multiple of ``world_size``.
    """
    records = training_records(cfg, like=like)
    batches = TrainingBatches(
        aspect_groups(records, cfg.DATALOADER.ASPECT_RATIO_GROUPING),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        rank=rank,
        world_size=world_size,
        seed=seed,
        start=start,
    )
    dataset = TrainingDataset(records, NativeMapper.from_config(cfg, is_train=True))
    return build_loader(cfg, dataset, batch_sampler=batches)


def build_test_loader(
    cfg: CfgNode, dataset: CocoDataset, *, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """A loader of ``list[Sample]`` of length 1: this worker's part of the dataset, in order."""
    count = len(dataset.records)
    part = range(rank * count // world_size, (rank + 1) * count // world_size)
    samples = EvaluationDataset(dataset.records, NativeMapper.from_config(cfg, is_train=False))
    return build_loader(cfg, Subset(samples, part), batch_size=1)
