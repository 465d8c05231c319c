import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from smca.data.sampler import Draw, TrainingSampler
from smca.errors import ConfigError

GROUPINGS = {
    "one group": [0] * 23,
    "two groups": [0, 1, 1, 0, 0, 1, 0] * 3,
    "a rare group": [0] * 12 + [1],
    "fewer records than a batch": [0, 1, 0],
}


def batches(groups, count, **arguments):
    sampler = TrainingSampler(
        [{}] * len(groups), **{"groups": groups, "batch_size": 4, "seed": 5, **arguments}
    )
    return list(islice(sampler, count))


def reference(groups, *, batch_size, seed, count):
    """The record indices of each batch: an epoch after the other, a bucket a group."""
    buckets, found, epoch = {}, [], 0
    while len(found) < count:
        for index in np.random.default_rng([seed, epoch]).permutation(len(groups)).tolist():
            bucket = buckets.setdefault(groups[index], [])
            bucket.append(index)
            if len(bucket) == batch_size:
                found.append(bucket.copy())
                bucket.clear()
        epoch += 1
    return found[:count]


@pytest.mark.parametrize("groups", GROUPINGS.values(), ids=GROUPINGS)
def test_batches_are_those_of_shuffled_epochs_in_buckets(groups):
    found = [[draw.index for draw in batch] for batch in batches(groups, 60)]
    assert found == reference(groups, batch_size=4, seed=5, count=60)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("groups", GROUPINGS.values(), ids=GROUPINGS)
def test_any_start_continues_the_same_stream(groups, world_size):
    """In the middle of an epoch too, whatever the number of workers was before."""
    whole = batches(groups, 80)
    assert len({draw.seed for batch in whole for draw in batch}) == 320
    for start in range(70):
        for rank in range(world_size):
            share = batches(groups, 5, start=start, rank=rank, world_size=world_size)
            expected = [batch[rank::world_size] for batch in whole[start : start + 5]]
            assert share == expected, (start, rank)


def test_seed_and_start_may_be_set_before_iteration():
    sampler = TrainingSampler([{}] * 21, groups=GROUPINGS["two groups"], batch_size=4, seed=0)
    sampler.seed, sampler.start = 5, 3
    assert list(islice(sampler, 2)) == batches(GROUPINGS["two groups"], 5)[3:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_share_the_same_global_batches(world_size):
    whole = batches(GROUPINGS["two groups"], 20)
    shares = [
        batches(GROUPINGS["two groups"], 20, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [batch[rank::world_size] for rank in range(world_size)] == parts


def test_an_epoch_holds_each_record_once_and_seeds_differ():
    draws = [draw for batch in batches([0] * 20, 10) for draw in batch]
    for epoch in (draws[:20], draws[20:]):
        assert Counter(draw.index for draw in epoch) == Counter(range(20))
    assert [d.index for d in draws[:20]] != [d.index for d in draws[20:]]
    assert all(isinstance(draw, Draw) and 0 <= draw.seed < 2**63 for draw in draws)
    assert batches([0] * 20, 10) != batches([0] * 20, 10, seed=6)


def test_resuming_late_in_a_long_training_is_quick():
    groups = np.random.default_rng(0).random(117_266) < 0.25
    sampler = TrainingSampler(
        [{}] * len(groups), groups=groups, batch_size=16, seed=0, start=366_000
    )
    begin = time.perf_counter()
    next(iter(sampler))
    assert time.perf_counter() - begin < 2
    tiny = TrainingSampler([{}] * 3, groups=[0, 0, 1], batch_size=16, seed=0, start=366_000)
    begin = time.perf_counter()
    next(iter(tiny))
    assert time.perf_counter() - begin < 2


def test_impossible_arguments_name_their_key():
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 6.*\(4\)"):
        TrainingSampler([{}] * 2, groups=[0, 0], batch_size=6, world_size=4, seed=0)


def test_a_sampler_of_your_own_chooses_the_records_of_an_epoch():
    """Repeated and left out, in batches that any start continues."""

    class Chosen(TrainingSampler):
        def epoch(self, records):
            return [0, 0, 3, 4]

    def first(count, start=0):
        sampler = Chosen([{}] * 5, groups=[0] * 5, batch_size=2, seed=0, start=start)
        return list(islice(sampler, count))

    whole = first(20)
    drawn = [[draw.index for draw in batch] for batch in whole]
    for left, right in zip(drawn[::2], drawn[1::2], strict=True):
        assert sorted(left + right) == [0, 0, 3, 4]
    assert len({draw.seed for batch in whole for draw in batch}) == 40
    assert all(first(3, start) == whole[start : start + 3] for start in range(15))


@pytest.mark.parametrize("found", [[], None, [0, 5], [-1, 0], [True, False], [0.5], [[0, 1]], 3])
def test_what_is_no_epoch_is_refused(found):
    class Odd(TrainingSampler):
        def epoch(self, records):
            return found

    with pytest.raises(ConfigError, match=r"SAMPLER_TRAIN Odd: its epoch\(\) must return a list"):
        Odd([{}] * 5, groups=[0] * 5, batch_size=2, seed=0)
