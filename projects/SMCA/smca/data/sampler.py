"""The endless stream of training batches: the same for any number of workers, after any resume."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from fvcore.common.registry import Registry
from torch.utils.data import Sampler

from ..errors import ConfigError

SMCA_SAMPLER_REGISTRY = Registry("SMCA_SAMPLER")
SMCA_SAMPLER_REGISTRY.__doc__ = "Subclasses of :class:`TrainingSampler`, by name."


class Draw(NamedTuple):
    """A record to train on, and the seed of its augmentation (63 bits)."""

    index: int
    seed: int


@SMCA_SAMPLER_REGISTRY.register()
class TrainingSampler(Sampler[list[Draw]]):
    """One worker's shares of an endless stream of global batches.

    The records are shuffled anew each epoch. A global batch holds records of one group; records
    that an epoch leaves over begin the next epoch's batches. Batch i depends on nothing but the
    records, the batch size, the seed and i, so that neither the number of workers nor a resume
    changes it.

    Attributes:
        members: indices of the records that an epoch holds.
        seed, start: may be set until iteration begins.
    """

    def __init__(
        self,
        records: Sequence[dict],
        *,
        groups: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int,
        start: int = 0,
    ):
        """
        Args:
            records: see :mod:`smca.data.coco`.
            groups: the group of each record; any integers.
            batch_size: records of a batch, over all workers.
            rank, world_size: worker ``rank`` takes the draws ``rank::world_size`` of each batch.
            seed: >= 0, the same on all workers.
            start: the first batch (training iteration) to yield.

        Raises:
            ConfigError: workers cannot share a batch evenly, or :meth:`epoch` returns something
                else than indices.
        """
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a positive multiple of the "
                f"number of workers ({world_size})"
            )
        self.members = members = np.asarray(self.epoch(records))
        fits = members.ndim == 1 and members.dtype.kind in "iu" and len(members) > 0
        if not fits or not 0 <= members.min() <= members.max() < len(records):
            raise ConfigError(
                f"DATALOADER.SAMPLER_TRAIN {type(self).__name__}: its epoch() must return a list "
                f"of indices of the {len(records)} records, from 0"
            )
        self.groups = np.asarray(groups)[self.members]
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.start = start

    def epoch(self, records: Sequence[dict]) -> Sequence[int]:
        """Return the indices of the records that each epoch holds, in any order.

        A sampler of your own may repeat records, or leave some out. It returns the same indices
        each time: all workers and a resumed run ask it anew.
        """
        return range(len(records))

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in self._global_batches():
            share = batch[self.rank :: self.world_size].tolist()
            yield [Draw(index, _draw_seed(self.seed, position)) for index, position in share]

    def _global_batches(self) -> Iterator[np.ndarray]:
        """Yield the batches from ``start`` on: (batch_size, 2), record index and position in the
        stream.
        """
        size, count = self.batch_size, len(self.members)
        groups, sizes = np.unique(self.groups, return_counts=True)
        # Begin at an epoch that precedes all records of batch `start`, which come from at most
        # `reach` epochs.
        reach = -(-size // int(sizes.min()))
        epoch = max(0, self.start * size // count - reach)
        # After e epochs a group of n records has made e * n // size batches. The records that wait
        # for their batch there are unknown (-1), but they belong to batches before `start`.
        number = int((epoch * sizes // size).sum())
        waiting = {
            group: np.full((epoch * n % size, 2), -1)
            for group, n in zip(groups.tolist(), sizes.tolist(), strict=True)
        }
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
            stream = np.stack([self.members[order], epoch * count + np.arange(count)], axis=1)
            batches = []
            for group in waiting:
                members = stream[self.groups[order] == group]
                members = np.concatenate([waiting[group], members])
                full = len(members) // size * size
                batches.append(members[:full].reshape(-1, size, 2))
                waiting[group] = members[full:]
            batches = np.concatenate(batches)
            # A batch is complete when its last record comes.
            batches = batches[np.argsort(batches[:, -1, 1])]
            yield from batches[max(0, self.start - number) :]
            number += len(batches)
            epoch += 1


def _draw_seed(seed: int, position: int) -> int:
    """Return the seed (63 bits) of the augmentation at a position of the stream."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
