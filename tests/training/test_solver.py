import copy

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.testing import assert_close

from smca.errors import CheckpointError, ConfigError
from smca.modeling import build_detector
from smca.training.solver import (
    build_lr_multiplier,
    build_optimizer,
    scale_to_workers,
    set_rates,
    with_clipping,
)


def trained(cfg):
    """A detector without numbers, its optimizer, and the learning rate of each parameter."""
    with torch.device("meta"):
        detector = build_detector(cfg)
    optimizer = build_optimizer(cfg, detector)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates.get(id(p)) for name, p in detector.named_parameters()}
    return detector, optimizer, by_name


def test_groups_have_the_papers_rates(config):
    detector, optimizer, rates = trained(config("smca_R50_50ep"))
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)
    for name, parameter in detector.named_parameters():
        expected = 1e-5 if name.startswith("backbone.") else 1e-4
        assert rates[name] == (expected if parameter.requires_grad else None)
    assert len(optimizer.param_groups) == 2


def test_deformable_sampling_has_a_rate_of_its_own(config):
    _, _, rates = trained(config("baselines/deformable_detr_R50_50ep"))
    slow = [name for name, rate in rates.items() if rate == pytest.approx(2e-5)]
    slow = [name for name in slow if not name.startswith("backbone.")]
    # Weight and bias of 6 encoder blocks, 6 decoder layers and the reference points.
    assert len(slow) == 26
    assert all("sampling" in name for name in slow)
    assert 2e-4 in rates.values()


@pytest.mark.parametrize("fused", [True, False])
def test_scaled_gradients_are_clipped_at_their_true_norm(fused, config):
    """As in Detectron2's AMPTrainer, which leaves unscaling to the scaler or to a fused kernel."""

    def trained_weight(scaled):
        layer = nn.Linear(4, 2)
        nn.init.constant_(layer.weight, 0.5)
        # A large epsilon: the step depends on the gradients' size.
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, eps=1.0, fused=fused)
        with_clipping(optimizer, config("smca_R50_50ep").SOLVER.CLIP_GRADIENTS)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        scaler.scale(layer(torch.arange(4.0)).sum()).backward()
        scaler.step(optimizer)
        return layer.weight.detach(), optimizer.grad_norm

    for found, expected in zip(trained_weight(True), trained_weight(False), strict=True):
        assert_close(found, expected)


def test_a_run_that_began_with_other_kernels_goes_on_with_fused_ones(tiny_config):
    detector = build_detector(tiny_config())
    optimizer = build_optimizer(tiny_config(), detector)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = None
    optimizer.load_state_dict(state)
    assert all(group["fused"] for group in optimizer.param_groups)
    assert all(group["fused"] is None for group in state["param_groups"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.OPTIMIZER", "SGD"),
        ("SOLVER.WEIGHT_DECAY_NORM", 0.0),
        ("SOLVER.BACKBONE_MULTIPLIER", 0.1),
        ("MODEL.BACKBONE.FREEZE_AT", 5),
    ],
)
def test_the_state_of_another_optimizer_is_refused(key, value, tiny_config):
    state = trained(tiny_config())[1].state_dict()
    with pytest.raises(CheckpointError, match="the checkpoint's optimizer is not this run's"):
        trained(tiny_config(key, value))[1].load_state_dict(state)


def test_sgd(tiny_config):
    cfg = tiny_config("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.8)
    optimizer = build_optimizer(cfg, build_detector(cfg))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_overflow_in_the_first_step_leaves_no_trace(tiny_config, name):
    def steps(gradients):
        torch.manual_seed(0)
        model = nn.Linear(64, 64)
        cfg = tiny_config("SOLVER.OPTIMIZER", name, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
        optimizer = build_optimizer(cfg, model)
        scaler = torch.amp.GradScaler("cpu", enabled=True)
        for gradient in gradients:
            for parameter in model.parameters():
                parameter.grad = scaler.scale(torch.full_like(parameter, gradient))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return model.state_dict(), optimizer.state_dict()["state"]

    torch.use_deterministic_algorithms(True)  # which fills new memory with NaN
    try:
        assert_close(steps([float("inf"), 0.1, 0.2]), steps([0.1, 0.2]))
    finally:
        torch.use_deterministic_algorithms(False)


def test_norms_may_decay_otherwise(tiny_config):
    cfg = tiny_config("SOLVER.WEIGHT_DECAY_NORM", 0.0)
    detector = build_detector(cfg)
    without = [g for g in build_optimizer(cfg, detector).param_groups if g["weight_decay"] == 0]
    norms = [p for n, p in detector.named_parameters() if "norm" in n and p.requires_grad]
    assert {id(p) for g in without for p in g["params"]} == {id(p) for p in norms}


def test_gradients_are_clipped_as_one_vector(tiny_config):
    cfg = tiny_config("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1)
    detector = build_detector(cfg)
    optimizer = build_optimizer(cfg, detector)
    for parameter in detector.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = torch.cat([p.grad.flatten() for p in detector.parameters()])
    optimizer.step()
    after = torch.cat([p.grad.flatten() for p in detector.parameters()])
    assert_close(after.norm(), torch.tensor(0.1), atol=1e-4, rtol=1e-4)
    assert_close(after / after.norm(), before / before.norm(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["linear", "constant"])
def test_schedule(tiny_config, method):
    options = ["SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (60, 80), "SOLVER.WARMUP_METHOD", method]
    multiplier = build_lr_multiplier(tiny_config(*options))
    for iteration in range(100):
        drops = (iteration >= 60) + (iteration >= 80)
        assert multiplier(iteration / 100) == pytest.approx(0.1**drops)
    warm = tiny_config(*options, "SOLVER.WARMUP_ITERS", 10, "SOLVER.WARMUP_FACTOR", 0.1)
    values = [build_lr_multiplier(warm)(i / 100) for i in range(12)]
    expected = [0.1 + 0.09 * i for i in range(10)] if method == "linear" else [0.1] * 10
    assert values == pytest.approx([*expected, 1.0, 1.0])


def test_epochs_of_the_papers_schedules(config):
    """50 epochs with the drop after 40, and 108 after 80, of 7,330 iterations."""
    for name, epochs, drop in (("smca_R50_50ep", 50, 40), ("smca_R50_108ep", 108, 80)):
        cfg = config(name)
        per_epoch = -(-117_266 // cfg.SOLVER.IMS_PER_BATCH)
        assert epochs * per_epoch == cfg.SOLVER.MAX_ITER
        assert tuple(cfg.SOLVER.STEPS) == (drop * per_epoch,)


def test_scaling_to_workers(tiny_config):
    cfg = tiny_config("SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1000, (800,)
    scaled = scale_to_workers(cfg, 2)
    assert scaled.SOLVER.IMS_PER_BATCH == 4
    assert pytest.approx(cfg.SOLVER.BASE_LR / 4) == scaled.SOLVER.BASE_LR
    assert (scaled.SOLVER.MAX_ITER, scaled.SOLVER.STEPS) == (4000, (3200,))
    assert scale_to_workers(cfg, 8) is cfg


class TwoParts(nn.Module):
    """An encoder, which AdamW trains, and a head, which SGD trains."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.encoder(x)).square().sum()


@pytest.fixture
def two_rules(config):
    """``two_rules(model, "KEY", value, ...)``: the optimizer of TSP-FCOS, with large rates."""
    opts = ("SOLVER.BASE_LR", 0.1, "SOLVER.ENCODER_MULTIPLIER", 0.5)
    return lambda model: build_optimizer(config("baselines/tsp_fcos_R50_36ep", *opts), model)


def batches(number):
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(number, 16, 4, generator=generator))


def test_one_optimizer_is_sgd_and_adamw(two_rules):
    model, plain = TwoParts(), TwoParts()
    optimizer = two_rules(model)
    sgd = torch.optim.SGD(plain.head.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    linear, norm = plain.encoder
    adamw = torch.optim.AdamW(
        [{"params": linear.parameters()}, {"params": norm.parameters(), "weight_decay": 0.0}],
        lr=0.05,
        weight_decay=1e-4,
    )
    for step, batch in enumerate(batches(5)):
        factor = 0.1 if step > 2 else 1.0
        set_rates(optimizer, [group["initial_lr"] * factor for group in optimizer.param_groups])
        sgd.param_groups[0]["lr"] = 0.1 * factor
        for group in adamw.param_groups:
            group["lr"] = 0.05 * factor
        for trained, rules in ((model, [optimizer]), (plain, [sgd, adamw])):
            trained.zero_grad()
            trained(batch).backward()
            if trained is plain:
                norm_before = nn.utils.clip_grad_norm_(plain.encoder.parameters(), 0.01)
            for rule in rules:
                rule.step()
        assert_close(optimizer.grad_norm, norm_before)
        assert norm_before > 0.01
    for name, parameter in plain.named_parameters():
        assert_close(model.get_parameter(name), parameter, rtol=1e-5, atol=1e-7)


def test_the_two_rules_resume_exactly(two_rules):
    whole, halves = TwoParts(), TwoParts()
    optimizer = two_rules(whole)
    for batch in batches(6):
        train_step(whole, optimizer, batch)
    optimizer = two_rules(halves)
    for batch in batches(6)[:3]:
        train_step(halves, optimizer, batch)
    state = copy.deepcopy((halves.state_dict(), optimizer.state_dict()))
    resumed = TwoParts()
    optimizer = two_rules(resumed)
    train_step(resumed, optimizer, batches(1)[0])  # other state, to be replaced
    resumed.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    for batch in batches(6)[3:]:
        train_step(resumed, optimizer, batch)
    for name, parameter in whole.named_parameters():
        assert torch.equal(resumed.get_parameter(name), parameter), name
    alone = torch.optim.SGD(resumed.parameters(), lr=0.1, momentum=0.9)
    with_clipping(alone, CfgNode({"ENABLED": False}))
    with pytest.raises(CheckpointError, match=r"SOLVER\.OPTIMIZER"):
        alone.load_state_dict(state[1])


def train_step(model, optimizer, batch):
    optimizer.zero_grad()
    model(batch).backward()
    optimizer.step()


def test_tsps_rates(config):
    _, optimizer, rates = trained(config("baselines/tsp_fcos_R50_36ep"))
    for name, rate in rates.items():
        if name.startswith("backbone.stem") or name.startswith("backbone.res2"):
            assert rate is None
        else:
            assert rate == pytest.approx(1e-4 if name.startswith("encoder.") else 1e-2), name
    encoder = sum(p.numel() for group in optimizer.clipped_groups for p in group["params"])
    assert encoder == 6 * (4 * 512 * 513 + 2 * 512 * 2048 + 2048 + 512 + 4 * 512) + 2 * 512


def test_two_rules_need_an_encoder(two_rules):
    with pytest.raises(ConfigError, match="SGD.AdamW.*needs an encoder"):
        two_rules(nn.Linear(2, 2))
