"""The moving average of the weights beside its recursion, number by number."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from smca.engine.ema import MovingAverage
from smca.errors import CheckpointError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def change(model):
    """As a training step would: other weights, and statistics of a batch."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    model.train()(torch.randn(8, 4))


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9998])
def test_the_recursion(model, decay):
    average = MovingAverage(model, decay=decay)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for iteration in range(6):
        change(model)
        average.update(iteration)
        part = min(decay, (1 + iteration) / (10 + iteration))
        for name, parameter in model.named_parameters():
            expected[name] = part * expected[name] + (1 - part) * parameter.detach()
        found = {name: p.double() for name, p in average.model.named_parameters()}
        assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert_close(dict(average.model.named_buffers()), dict(model.named_buffers()))
    assert model[1].num_batches_tracked == 6


def test_the_average_is_not_trained(model):
    average = MovingAverage(model, decay=0.9)
    assert model.training and not average.model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in average.model.parameters())
    own = {p.data_ptr() for p in average.model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in model.parameters())


def test_it_begins_with_the_weights_that_training_begins_with(model):
    average = MovingAverage(model, decay=0.9)
    change(model)
    average.begin()
    assert_close(average.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert list(average.state_dict()) == list(model.state_dict())


def test_a_loaded_average_goes_on(model):
    average = MovingAverage(model, decay=0.9)
    change(model)
    average.update(0)
    other = copy.deepcopy(model)
    resumed = MovingAverage(other, decay=0.9)
    resumed.load_state_dict(copy.deepcopy(average.state_dict()))
    resumed.begin()
    torch.manual_seed(1)
    change(model)
    torch.manual_seed(1)
    change(other)
    average.update(1), resumed.update(1)
    assert_close(resumed.state_dict(), average.state_dict(), rtol=0, atol=0)


def test_a_file_without_all_of_it_is_refused(model):
    state = model.state_dict()
    del state["2.weight"]
    with pytest.raises(CheckpointError, match=r"moving average lacks 2\.weight"):
        MovingAverage(model, decay=0.9).load_state_dict(state)
