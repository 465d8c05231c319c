"""What LazyConfigs are made from, beside the model's constructors: loaders and learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.data import DatasetCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..data.dataset import EvaluationDataset, TrainingDataset, aspect_groups
from ..data.loader import list_loader
from ..data.sampler import TrainingBatches
from ..training.solver import role_of
from .datasets import usable_records


def training_records(*, names: str | Sequence[str], filter_empty: bool = True) -> list[dict]:
    """The records of registered datasets, without boxes that cannot be learned from.

    Args:
        names: of one dataset or several.
        filter_empty: leave images without annotations out, too.

    Raises:
        DatasetError: a file that is missing or not in COCO's format, or nothing is left.
    """
    names = [names] if isinstance(names, str) else names
    records = {name: DatasetCatalog.get(name) for name in names}
    return usable_records(records, filter_empty=filter_empty)


def build_train_loader(
    *,
    dataset: Sequence[dict],
    mapper: Callable[[dict], dict],
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 4,
    seed: int = 0,
) -> DataLoader:
    """An endless loader of lists of dicts, this worker's shares of the global batches.

    Args:
        dataset: records, such as those of :func:`training_records`.
        mapper: record -> model input; may use the generators of Python, NumPy and torch.
        total_batch_size: images of a batch, over all workers.
        aspect_ratio_grouping: wide images and others come in batches of their own.
        num_workers: loader processes of each worker.
        seed: of the order and the augmentation; the trainer sets its own.

    Raises:
        ConfigError: the batch is no multiple of the number of workers.
    """
    batches = TrainingBatches(
        aspect_groups(dataset, aspect_ratio_grouping),
        batch_size=total_batch_size,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        seed=seed,
    )
    samples = TrainingDataset(dataset, mapper)
    return list_loader(samples, num_workers=num_workers, batch_sampler=batches)


def build_test_loader(
    *, dataset: Sequence[dict], mapper: Callable[[dict], dict], num_workers: int = 4
) -> DataLoader:
    """This worker's part of the records, in order, an image a batch."""
    samples = EvaluationDataset(dataset, mapper)
    sampler = InferenceSampler(len(samples))
    return list_loader(samples, num_workers=num_workers, sampler=sampler, batch_size=1)


def learning_rate_factor(*, backbone: float = 1.0, sampling: float = 1.0) -> Callable[[str], float]:
    """The ``lr_factor_func`` of Detectron2's ``get_default_optimizer_params``.

    Args:
        backbone: learning rate of the backbone, as a fraction of the others'.
        sampling: that of what places Deformable DETR's samples and references.

    Returns:
        a function of a parameter's name.
    """
    factors = {"": 1.0, "backbone": backbone, "sampling": sampling}
    return lambda name: factors[role_of(name.split("."))]
