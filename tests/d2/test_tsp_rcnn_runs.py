"""A small TSP-RCNN in training: gradients, odd batches, mixed precision; whole runs of it."""

import re

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.engine import DefaultTrainer  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from tiny_tsp import CONFIG, SMALL, small_config  # noqa: E402

from smca.checkpoints import load, write_checkpoint  # noqa: E402
from smca.errors import ConfigError  # noqa: E402

OBJECTS = torch.tensor([[8.0, 8, 32, 32], [40, 4, 72, 48], [38, 6, 74, 46]])


def build(*opts):
    torch.manual_seed(0)
    return build_model(small_config(*opts)).train()


def caffe2_name(name):
    """What Caffe2 calls a tensor of Detectron2's ResNet."""
    name = re.sub(r"conv(\d)\.", lambda match: f"branch2{'abc'[int(match[1]) - 1]}.", name)
    name = name.replace("stem.branch2a.norm", "res_conv1.norm").replace("stem.branch2a", "conv1")
    name = name.replace("shortcut.", "branch1.").replace("norm.weight", "bn_s")
    return name.replace("norm.bias", "bn_b").replace("weight", "w").replace(".", "_")


def test_msras_resnet_goes_below_the_pyramid(tmp_path):
    narrow = "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4
    model = build(*narrow, "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NORM", "FrozenBN")
    resnet = model.backbone.bottom_up
    state = {
        name: torch.randn_like(tensor)
        for name, tensor in resnet.state_dict().items()
        if "running" not in name
    }
    state["fc1000.weight"] = torch.randn(3, 3)
    state["stem.conv1.bias"] = torch.randn(64)  # which Detectron2's ResNet does not have
    path = tmp_path / "R-50.pth"
    write_checkpoint({"model": {caffe2_name(name): x for name, x in state.items()}}, path)
    load(model, path)
    del state["fc1000.weight"], state["stem.conv1.bias"]
    own = resnet.state_dict()
    assert_close({name: own[name] for name in state}, state, rtol=0, atol=0)


def test_what_it_does_not_read_is_refused():
    with pytest.raises(ConfigError, match="PROPOSAL_APPEND_GT is True; it must be False"):
        build("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", True)
    with pytest.raises(ConfigError, match=r"DefaultTrainer is SGD.*SOLVER.OPTIMIZER SGD\+AdamW"):
        DefaultTrainer(small_config("SOLVER.CLIP_GRADIENTS.ENABLED", False))


def batch(counts=(3, 2)):
    torch.manual_seed(1)
    images = []
    for size, number in zip([(64, 96), (50, 80)], counts, strict=True):
        objects = Instances(size, gt_boxes=Boxes(OBJECTS[:number]))
        objects.gt_classes = torch.arange(number)
        images.append({"image": torch.rand(3, *size) * 255, "instances": objects})
    return images


def losses_of(model, inputs):
    with EventStorage():
        return model(inputs)


@pytest.mark.parametrize("counts", [(3, 2), (2, 0), (0, 0)])
def test_all_that_is_trained_has_a_gradient(counts):
    model = build()
    losses = losses_of(model, batch(counts))
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert all(loss.isfinite() for loss in losses.values())
    if not any(counts):
        assert losses["loss_cls"] == losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    if counts == (3, 2):
        idle = [name for name, gradient in gradients.items() if not gradient.any()]
        # Coarse levels have few places in so small images.
        assert all(".norms." in name or ".top_block.p7." in name for name in idle)


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)])
def test_without_any_proposal(counts, monkeypatch):
    """Objects with noise stand for them; without objects, too, all parameters have gradients."""
    model = build("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 10_000)
    losses = losses_of(model, batch(counts))
    assert losses["loss_cls"] > 0 if any(counts) else losses["loss_cls"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for output in model.eval()(batch()):
        assert len(output["instances"]) == 0


def test_mixed_precision():
    """Losses are float32, and near those of float32."""
    model = build("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0)
    torch.manual_seed(0)
    plain = losses_of(model, batch())
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch())
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert_close(loss, plain[name], rtol=0.2, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.fixture
def run(train_net, shapes, tmp_path):
    """``run("out", 4, "--resume")`` trains for 4 iterations and returns what was printed."""
    data = [[name, *files] for name, files in shapes.items()]

    def start(folder, iterations, *flags, weights=""):
        return train_net(
            *("--engine", "detectron2", "--config-file", CONFIG, *flags, *SMALL),
            *("DATASETS.COCO_FORMAT", data, "DATASETS.TRAIN", ("train",)),
            *("DATASETS.TEST", ("val",), "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
            *("SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", (3,), "SOLVER.WARMUP_ITERS", 2),
            *("OUTPUT_DIR", tmp_path / folder, "MODEL.WEIGHTS", weights),
        )

    return start


def test_it_trains_resumes_exactly_and_evaluates(run, tmp_path):
    run("whole", 4)
    run("parts", 2)
    run("parts", 4, "--resume")
    whole, parts = (
        torch.load(tmp_path / folder / "model_final.pth", weights_only=True)
        for folder in ("whole", "parts")
    )
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(whole["model"][name], x) for name, x in parts["model"].items())
    groups = whole["trainer"]["_trainer"]["optimizer"]["param_groups"]
    adamw = [group for group in groups if "betas" in group]
    assert adamw and all(group["initial_lr"] == 0.0001 for group in adamw)
    sgd = [group for group in groups if "momentum" in group]
    assert all(group["initial_lr"] == 0.02 and group["momentum"] == 0.9 for group in sgd)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.0001}
    output = run("test", 4, "--eval-only", weights=tmp_path / "whole" / "model_final.pth")
    assert re.search(r"copypaste: [\d.]+", output)


def test_the_native_host_says_who_can_run_it(train_net):
    with pytest.raises(AssertionError, match="GeneralizedRCNN.*--engine detectron2"):
        train_net("--engine", "native", "--config-file", CONFIG)
