"""Datasets that map records to samples: seeded augmentation, and images that cannot be read."""

import logging
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import DatasetError
from .reading import note
from .sampler import Draw

logger = logging.getLogger(__name__)


class PackedRecords(Sequence):
    """Records in one block of memory, which loader processes share.

    Python objects would be copied into each process as their reference counts change.
    """

    def __init__(self, records: Sequence[dict]):
        packed = [pickle.dumps(record, protocol=-1) for record in records]
        self._ends = np.cumsum([len(part) for part in packed], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        begin = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[begin : self._ends[index]].data)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch (CPU), and restore their states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        # torch.manual_seed would seed the GPUs too.
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class _MappedRecords(Dataset):
    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], object]):
        self.records = PackedRecords(records)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)


class TrainingDataset(_MappedRecords):
    """Maps draws to samples. An image that cannot be read is replaced by the next readable one."""

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], object]):
        super().__init__(records, mapper)
        # In shared memory: each file is warned of once, not once in each loader process.
        self._warned = torch.zeros(len(records), dtype=torch.bool).share_memory_()

    def __getitem__(self, draw: Draw) -> object:
        """
        Raises:
            DatasetError: no image of the dataset can be read.
        """
        for step in range(len(self)):
            index = (draw.index + step) % len(self)
            record = self.records[index]
            note(record["file_name"])
            with seeded(draw.seed):
                try:
                    return self.mapper(record)
                except OSError as error:
                    if not self._warned[index]:
                        self._warned[index] = True
                        message = "cannot read %s: %s; training goes on without it"
                        logger.warning(message, record["file_name"], error)
        raise DatasetError(f"none of the {len(self)} training images can be read")


class EvaluationDataset(_MappedRecords):
    """Maps records to samples. An image that cannot be read ends the evaluation."""

    def __getitem__(self, index: int) -> object:
        """
        Raises:
            DatasetError: the image cannot be read.
        """
        record = self.records[index]
        note(record["file_name"])
        try:
            return self.mapper(record)
        except OSError as error:
            raise DatasetError(
                f"cannot read {record['file_name']}: {error}; evaluation needs every image"
            ) from error
