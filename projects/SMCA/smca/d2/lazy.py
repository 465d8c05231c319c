"""The parts of LazyConfigs beside the model's constructors: loaders and learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.data import DatasetCatalog

from ..data.coco import usable_records
from ..data.loader import build_test_loader, build_train_loader
from ..training.solver import role_of
from .datasets import plain_records

__all__ = ["build_test_loader", "build_train_loader", "learning_rate_factor", "training_records"]


def training_records(*, names: str | Sequence[str], filter_empty: bool = True) -> list[dict]:
    """Return the records of registered datasets, without boxes that cannot be learned from.

    Args:
        names: of one dataset or several.
        filter_empty: also leave out images without annotations.

    Raises:
        DatasetError: see :func:`~smca.data.coco.load_coco`; or nothing is left to train on.
    """
    names = [names] if isinstance(names, str) else names
    datasets = [(name, plain_records(DatasetCatalog.get(name))) for name in names]
    return usable_records(datasets, filter_empty=filter_empty)


def learning_rate_factor(*, backbone: float = 1.0, sampling: float = 1.0) -> Callable[[str], float]:
    """Return the ``lr_factor_func`` of Detectron2's ``get_default_optimizer_params``, a function of
    a parameter's name.

    Args:
        backbone: learning rate of the backbone, as a fraction of the others'.
        sampling: the same for the parameters that place Deformable DETR's samples and references.
    """
    factors = {"": 1.0, "backbone": backbone, "sampling": sampling}
    return lambda name: factors[role_of(name.split("."))]
