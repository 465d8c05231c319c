"""Learning rates and the moving average of the weights, at any iteration of any schedule."""

import copy
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import smca
from smca.config import ConfigError, flatten, validate
from smca.engine.ema import MovingAverage
from smca.training.solver import build_lr_multiplier, scale_to_workers

BASE = smca.get_cfg()


@st.composite
def schedules(draw):
    length = draw(st.integers(1, 400))
    steps = draw(st.sets(st.integers(-2, 500), max_size=4))
    return {
        "SOLVER.MAX_ITER": length,
        "SOLVER.STEPS": tuple(sorted(steps)),
        "SOLVER.GAMMA": draw(st.sampled_from([0.1, 0.5, 1.0])),
        "SOLVER.WARMUP_ITERS": draw(st.integers(0, 500)),
        "SOLVER.WARMUP_FACTOR": draw(st.sampled_from([0.0, 0.001, 0.5, 1.0, -1.0, 2.0])),
        "SOLVER.WARMUP_METHOD": draw(st.sampled_from(["linear", "constant"])),
        "SOLVER.RESCALE_INTERVAL": draw(st.booleans()),
        "SOLVER.LR_SCHEDULER_NAME": draw(st.sampled_from(["WarmupMultiStepLR", "WarmupCosineLR"])),
        "SOLVER.BASE_LR_END": draw(st.sampled_from([0.0, 1e-6])),
    }


def configured(options):
    cfg = BASE.clone()
    cfg.merge_from_list([part for item in options.items() for part in item])
    return cfg


def names_a_key(error):
    return any(re.search(rf"\b{re.escape(key)}\b", str(error)) for key in flatten(BASE))


@settings(max_examples=300)
@given(schedules())
def test_the_learning_rate_stays_in_bounds_and_falls_after_the_warm_up(options):
    cfg = configured(options)
    try:
        validate(cfg)
    except ConfigError as error:
        assert names_a_key(error)
        return
    multiplier, length = build_lr_multiplier(cfg), cfg.SOLVER.MAX_ITER
    # The host asks for the one after the last iteration, too.
    values = [multiplier(i / length) for i in range(length + 1)]
    assert all(0 <= value <= 1 + 1e-9 for value in values)
    warm = min(cfg.SOLVER.WARMUP_ITERS, length)
    rises = [later - earlier for earlier, later in zip(values[:-1], values[1:], strict=True)]
    assert all(rise <= 1e-9 for rise in rises[warm:])
    first = [rise for rise in rises[: max(0, warm - 1)] if abs(rise) > 1e-9]
    assert all(rise > 0 for rise in first) or all(rise < 0 for rise in first)
    if cfg.SOLVER.WARMUP_METHOD == "constant":
        assert not first


@settings(max_examples=200)
@given(schedules(), st.integers(1, 16), st.integers(1, 16), st.integers(1, 64))
@example({"SOLVER.STEPS": (1, 2), "SOLVER.MAX_ITER": 8}, 1, 8, 16)
@example({"SOLVER.STEPS": (), "SOLVER.MAX_ITER": 3}, 1, 8, 16)
@example({}, 8, 1, 2)
def test_a_schedule_scaled_to_workers_is_sound_or_refused(options, reference, workers, batch):
    cfg = configured(options)
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH = reference, batch
    cfg.TEST.EVAL_PERIOD = 3
    try:
        validate(cfg)
        scaled = scale_to_workers(cfg, workers)
    except ConfigError as error:
        assert names_a_key(error)
        return
    validate(scaled)
    assert scaled.TEST.EVAL_PERIOD > 0  # 0 would be no evaluation but the last
    assert scaled.SOLVER.IMS_PER_BATCH * reference == pytest.approx(batch * workers, abs=reference)
    assert 0 <= build_lr_multiplier(scaled)(1.0) <= 1


@settings(max_examples=100)
@given(
    st.floats(0, 0.99999),
    st.lists(st.integers(0, 10**7), min_size=1, max_size=20),
    st.integers(0, 2**32 - 1),
)
@example(0.0, [0], 0)
@example(0.99999, [10**7], 0)
def test_the_moving_average_is_within_what_the_weights_have_been(decay, iterations, seed):
    """At any iteration, in any order: never outside, and after the first nearer to the weights."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    average = MovingAverage(model, decay=decay)
    low, high = copy.deepcopy(model.weight.data), copy.deepcopy(model.weight.data)
    for iteration in iterations:
        before = average.model.weight.clone()
        with torch.no_grad():
            model.weight.normal_()
        low, high = torch.minimum(low, model.weight), torch.maximum(high, model.weight)
        average.update(iteration)
        found = average.model.weight
        assert ((found >= low - 1e-5) & (found <= high + 1e-5)).all()
        distance, least = (found - model.weight).abs(), (before - model.weight).abs()
        assert (distance <= least * max(decay, 1e-6) + 1e-5).all()
