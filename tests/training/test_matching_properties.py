"""The matching of drawn batches beside all that could have been chosen."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from smca.structures import Predictions
from smca.training import HungarianMatcher, Targets

seeds = st.integers(0, 2**32 - 1)
counts = st.lists(st.integers(0, 4), min_size=1, max_size=3)


def drawn(queries, counts, columns, *, ties):
    """Predictions and targets; with ``ties`` of a few numbers, so that many costs are equal."""
    images, most = len(counts), max(counts)
    logits, boxes = torch.randn(2, images, queries, columns), torch.rand(2, images, queries, 4)
    labels, wanted = torch.randint(columns, (images, most)), torch.rand(images, most, 4)
    boxes[..., 2:], wanted[..., 2:] = boxes[..., 2:] / 2 + 0.1, wanted[..., 2:] / 2 + 0.1
    if ties:
        logits, boxes, wanted = logits.sign(), (boxes * 3).ceil() / 4, (wanted * 3).ceil() / 4
    predictions = Predictions(logits=logits, boxes=boxes, centers=None)
    return predictions, Targets(labels=labels, boxes=wanted, counts=tuple(counts))


def best_total(costs):
    """The least sum of costs (queries, objects) of any matching of as many as there can be."""
    if len(costs) < costs.shape[1]:
        costs = costs.T
    choices = list(itertools.permutations(range(len(costs)), costs.shape[1]))
    return costs[torch.tensor(choices), torch.arange(costs.shape[1])].sum(1).min()


def pairs_of(matches, counts):
    """(layer, image, queries, objects) of each layer and image."""
    for layer, image in itertools.product(range(2), range(len(counts))):
        here = (matches.layer == layer) & (matches.image == image)
        yield layer, image, matches.query[here], matches.target[here]


def assert_one_to_one(matches, queries, counts):
    for _, image, chosen, objects in pairs_of(matches, counts):
        assert len(chosen) == len(objects) == min(queries, counts[image])
        assert len(set(chosen.tolist())) == len(chosen)
        assert len(set(objects.tolist())) == len(objects)
        assert all(0 <= query < queries for query in chosen.tolist())
        assert all(0 <= target < counts[image] for target in objects.tolist())


@settings(max_examples=500)
@given(st.integers(1, 6), counts, st.integers(1, 4), st.booleans(), st.booleans(), seeds)
@example(1, [4, 0], 1, False, True, 0)
def test_no_matching_costs_less(queries, counts, columns, softmax, ties, seed):
    torch.manual_seed(seed)
    predictions, targets = drawn(queries, counts, columns, ties=ties)
    matcher = HungarianMatcher(softmax=softmax)
    matches = matcher(predictions, targets)
    assert_one_to_one(matches, queries, counts)
    costs = matcher.costs(predictions, targets)
    for layer, image, chosen, objects in pairs_of(matches, counts):
        if counts[image]:
            of_image = costs[layer, image, :, : counts[image]].double()
            best = best_total(of_image)
            assert_close(of_image[chosen, objects].sum(), best, rtol=1e-6, atol=1e-6)


@settings(max_examples=150)
@given(st.integers(1, 6), counts, st.booleans(), st.integers(1, 4), seeds)
def test_numbers_that_are_not_finite_stop_nothing_and_are_avoided(
    queries, counts, softmax, bad, seed
):
    torch.manual_seed(seed)
    predictions, targets = drawn(queries, counts, 3, ties=False)
    broken = set()
    for _ in range(bad):
        layer, image, query = (int(torch.randint(n, ())) for n in (2, len(counts), queries))
        broken.add((layer, image, query))
        value = [torch.nan, torch.inf, -torch.inf][int(torch.randint(3, ()))]
        if torch.rand(()) < 0.5:
            predictions.logits[layer, image, query] = torch.nan
        else:
            predictions.boxes[layer, image, query, int(torch.randint(4, ()))] = value
    matches = HungarianMatcher(softmax=softmax)(predictions, targets)
    assert_one_to_one(matches, queries, counts)
    for layer, image, chosen, _ in pairs_of(matches, counts):
        used = sum((layer, image, query) in broken for query in chosen.tolist())
        sound = sum((layer, image, query) not in broken for query in range(queries))
        assert used == max(0, len(chosen) - sound)


@settings(max_examples=150)
@given(st.integers(1, 6), counts, st.booleans(), seeds)
def test_the_order_of_queries_and_of_objects_does_not_matter(queries, counts, softmax, seed):
    torch.manual_seed(seed)
    predictions, targets = drawn(queries, counts, 4, ties=False)
    order = torch.randperm(queries)
    moved = Predictions(
        logits=predictions.logits[:, :, order], boxes=predictions.boxes[:, :, order], centers=None
    )
    matcher = HungarianMatcher(softmax=softmax)
    expected, found = matcher(predictions, targets), matcher(moved, targets)

    def chosen(matches, queries):
        indices = torch.stack((matches.layer, matches.image, queries, matches.target), dim=1)
        return sorted(indices.tolist())

    assert chosen(found, order[found.query]) == chosen(expected, expected.query)


@pytest.mark.parametrize("queries", [300, 900])
def test_more_objects_than_queries_at_full_size(queries):
    torch.manual_seed(0)
    predictions, targets = drawn(queries, [1000, 0, 7], 80, ties=True)
    matches = HungarianMatcher()(predictions, targets)
    assert_one_to_one(matches, queries, [1000, 0, 7])
