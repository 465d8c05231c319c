"""The native host's data loaders, from a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from ..data import loader
from ..data.coco import CocoDataset, load_datasets, usable_records
from ..data.mapper import DetrMapper


def build_train_loader(
    cfg: CfgNode, *, seed: int, start: int = 0, like: Mapping[str, Sequence[str]] | None = None
) -> DataLoader:
    """Build an endless loader of ``list[Sample]``, this worker's shares of the global batches.

    Args:
        seed, start: see :func:`~smca.data.loader.build_train_loader`.
        like: the class names of other datasets, which those of training must be the same as.

    Raises:
        DatasetError: see :func:`~smca.data.coco.load_datasets`; or nothing is left to train on.
        ConfigError: SOLVER.IMS_PER_BATCH is not a multiple of the number of workers.
    """
    datasets = load_datasets(cfg, cfg.DATASETS.TRAIN, like=like)
    return loader.build_train_loader(
        dataset=usable_records(
            [(dataset.name, dataset.records) for dataset in datasets],
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        ),
        mapper=DetrMapper.from_config(cfg, is_train=True),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
        start=start,
    )


def build_test_loader(cfg: CfgNode, dataset: CocoDataset) -> DataLoader:
    """Build a loader of ``list[Sample]``, one image a batch: this worker's part, in order."""
    return loader.build_test_loader(
        dataset=dataset.records,
        mapper=DetrMapper.from_config(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
