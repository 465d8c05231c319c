"""Backbones by name: timm's models and their weights, in both hosts, and names that are refused."""

import sys

import pytest
import torch
import torch.nn.functional as F
from engines import ENGINES, needs_detectron2

import smca
from smca.checkpoints import SafeCheckpointing, load
from smca.errors import CheckpointError, ConfigError
from smca.inference.export import PixelDetector
from smca.modeling import ResNet, build_detector, detect
from smca.modeling.simple_pyramid import SimplePyramid
from smca.training import SetCriterion, Targets
from smca.training.solver import build_optimizer

# Small models of all kinds: a ResNet, layer norms, a plain ViT, windows, and maps in NHWC.
MODELS = ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"]
WINDOWS = ["swin_tiny_patch4_window7_224", "maxvit_rmlp_pico_rw_256"]


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.fixture
def timm_config(timm, tiny_config):
    """``timm_config("test_vit", "KEY", value, ...)``: the tiny config with this backbone."""

    def config(name, *opts):
        chosen = ("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.TIMM.NAME", name)
        return tiny_config(*chosen, "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.WEIGHTS", "", *opts)

    return config


def build_in(host, cfg):
    if host == "native":
        return build_detector(cfg)
    from detectron2.modeling import build_model

    from smca.d2.predictor import Detectron2Host

    return build_model(Detectron2Host.read(cfg))


@pytest.mark.parametrize("name", [*MODELS, *WINDOWS, "vit_tiny_patch16_224"])
def test_maps_of_images_of_any_size(timm_config, name):
    features = ["res3", "res4", "res5"]
    cfg = timm_config(name, "MODEL.SMCA.IN_FEATURES", features)
    backbone = build_detector(cfg).backbone.eval()
    assert backbone.strides == {"res3": 8, "res4": 16, "res5": 32}
    for height, width in [(75, 98), (33, 64)]:
        with torch.no_grad():
            maps = backbone(torch.randn(2, 3, height, width))
        assert list(maps) == features
        for feature, stride in backbone.strides.items():
            cells = (-(-height // stride), -(-width // stride))
            assert maps[feature].shape == (2, backbone.channels[feature], *cells)
            assert maps[feature].isfinite().all()


def test_maps_are_the_models_own(timm, timm_config):
    torch.manual_seed(0)
    backbone = build_detector(timm_config("test_convnext")).backbone.eval()
    theirs = timm.create_model("test_convnext", features_only=True, out_indices=(2, 3)).eval()
    theirs.load_state_dict(backbone.timm.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(backbone(images).values(), theirs(images), strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_an_exported_detector_takes_images_of_all_sizes(timm_config, name):
    torch.manual_seed(0)
    cfg = timm_config(name)
    model = PixelDetector(cfg, build_detector(cfg))
    sides = {2: torch.export.Dim("h", min=65, max=999), 3: torch.export.Dim("w", min=65, max=999)}
    with torch.no_grad():
        example = torch.rand(1, 3, 288, 416)
        exported = torch.export.export(model, (example,), dynamic_shapes=(sides,), strict=False)
        for height, width in [(75, 98), (130, 96)]:
            images = 255 * torch.rand(1, 3, height, width)
            torch.testing.assert_close(exported.module()(images), model(images))


def test_patches_of_14_pixels_have_multiples_of_14(timm_config):
    backbone = build_detector(timm_config("eva02_tiny_patch14_224")).backbone
    assert backbone.strides == {"res4": 14, "res5": 28}
    with pytest.raises(ConfigError, match=r"IN_FEATURES .*res2.* has \['res3', 'res4', 'res5'\]"):
        build_detector(
            timm_config("eva02_tiny_patch14_224", "MODEL.SMCA.IN_FEATURES", ["res2", "res5"])
        )


def test_the_pyramid_is_vitdets():
    """Section 3 of the paper, written out."""
    torch.manual_seed(0)
    pyramid = SimplePyramid(
        in_channels=16, in_stride=16, dim=8, strides={"res2": 4, "res4": 16, "res5": 32}
    ).double()
    for parameter in pyramid.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 16, 6, 4).double()
    state = pyramid.state_dict()

    def norm(x, name):
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
        weight, bias = (state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def double(x, name):
        return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)

    def convolved(x, level, first):
        x = norm(F.conv2d(x, state[f"{level}.{first}.weight"]), f"{level}.{first + 1}")
        x = F.conv2d(x, state[f"{level}.{first + 2}.weight"], padding=1)
        return norm(x, f"{level}.{first + 3}")

    fine = double(F.gelu(norm(double(x, "res2.0"), "res2.1")), "res2.3")
    expected = {
        "res2": convolved(fine, "res2", 4),
        "res4": convolved(x, "res4", 0),
        "res5": convolved(F.max_pool2d(x, 2), "res5", 1),
    }
    torch.testing.assert_close(pyramid(x), expected)


@pytest.mark.parametrize("host", ENGINES)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_step_trains_the_backbone(timm_config, name, host):
    torch.manual_seed(0)
    cfg = timm_config(name, "MODEL.TIMM.FROZEN_BN", False)
    detector = build_in(host, cfg).train()
    rates = {
        id(p): group["lr"]
        for group in build_optimizer(cfg, detector).param_groups
        for p in group["params"]
    }
    images, sizes = torch.randn(2, 3, 75, 98), [(75, 98), (60, 70)]
    boxes = torch.tensor([[10.0, 20, 40, 50], [30, 30, 60, 55]])
    targets = Targets.from_images(
        [torch.tensor([0, 2])] * 2, [boxes] * 2, sizes, torch.device("cpu")
    )
    predictions = detector.predict(images, sizes)
    sum(SetCriterion(**SetCriterion.from_config(cfg))(predictions, targets).values()).backward()
    for parameter_name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        slow = parameter_name.startswith("backbone.timm.")
        factor = cfg.SOLVER.BACKBONE_MULTIPLIER if slow else 1.0
        assert rates[id(parameter)] == cfg.SOLVER.BASE_LR * factor
    with torch.no_grad():
        found = detect(detector.eval().predict(images, sizes), sizes, max_detections=9)
    assert all(image.boxes.isfinite().all() for image in found)


@pytest.mark.parametrize("frozen_bn", [True, False])
def test_frozen_stages_do_not_train(timm_config, frozen_bn):
    opts = ("MODEL.BACKBONE.FREEZE_AT", 3, "MODEL.TIMM.FROZEN_BN", frozen_bn)
    model = build_detector(timm_config("test_resnet", *opts)).backbone.timm
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4"}
    norms = {
        name.split(".")[0]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    assert norms == (set() if frozen_bn else {"layer3", "layer4"})


@pytest.mark.parametrize("host", ENGINES)
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_weights_fill_the_whole_model(timm, timm_config, tmp_path, name, features_only, host):
    theirs = timm.create_model(name, features_only=features_only)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    detector = build_in(host, timm_config(name, "MODEL.BACKBONE.FREEZE_RANDOM", False))
    SafeCheckpointing(detector).resume_or_load(str(tmp_path / "model.pth"), resume=False)
    saved = {n.removeprefix("model.").replace(".", "_"): t for n, t in theirs.state_dict().items()}
    for place, tensor in detector.backbone.timm.state_dict().items():
        expected = saved[place.removeprefix("model.").replace(".", "_")]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_weights_of_another_model_are_refused(timm, timm_config, tmp_path, name):
    state = timm.create_model(name, features_only=True).state_dict()
    detector = build_detector(timm_config(name))
    removed = next(name for name in state if name.endswith("weight"))
    for fault, changed in {
        f"lacks backbone.timm.{removed},": {n: t for n, t in state.items() if n != removed},
        rf"also has backbone.timm.{removed}0$": state | {f"{removed}0": torch.zeros(1)},
        "none of the model's tensors.*docs/MODEL.md": {"stem.conv1.weight": torch.zeros(1)},
    }.items():
        torch.save(changed, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=fault):
            load(detector, tmp_path / "other.pth")


def test_frozen_random_weights_are_refused(timm_config):
    detector = build_detector(timm_config("test_resnet"))
    with pytest.raises(ConfigError, match="MODEL.TIMM.FROZEN_BN False"):
        SafeCheckpointing(detector).resume_or_load("", resume=False)


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("test_resnett", (), "did you mean test_resnet"),
        ("mixer_s16_224", (), "mixer_s16_224 cannot be a backbone: it does not take .* all sizes"),
        ("test_vit", ("MODEL.BACKBONE.FREEZE_AT", 2), "FREEZE_AT is 2;.* 0 or at least 4"),
        ("test_vit", ("MODEL.SMCA.IN_FEATURES", ["res9"]), "res9.*has .*res5"),
    ],
)
def test_impossible_models_are_refused(timm_config, name, opts, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(timm_config(name, *opts))


def test_without_timm_the_remedy_is_named(tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm .*pip install 'timm>="):
        build_detector(tiny_config("MODEL.BACKBONE.NAME", "TimmBackbone"))


def test_backbones_that_the_native_host_lacks_are_refused(tiny_config):
    for name in ("build_resnet_fpn_backbone", "ResNett"):
        with pytest.raises(
            ConfigError, match=rf"{name}.*ResNet, TimmBackbone.*--engine detectron2"
        ):
            build_detector(tiny_config("MODEL.BACKBONE.NAME", name))


@needs_detectron2
def test_unknown_names_are_refused_in_detectron2s_host(tiny_config):
    with pytest.raises(ConfigError, match="ResNett.*TimmBackbone.*build_resnet_fpn_backbone"):
        build_in("detectron2", tiny_config("MODEL.BACKBONE.NAME", "ResNett"))


@pytest.mark.parametrize("host", ENGINES)
def test_names_of_the_resnet(tiny_config, host):
    states = []
    for name in (
        "ResNet",
        "build_smca_resnet_backbone",
        *["build_resnet_backbone"][: host == "native"],
    ):
        detector = build_in(host, tiny_config("MODEL.BACKBONE.NAME", name))
        assert isinstance(detector.backbone, ResNet)
        states.append(list(detector.state_dict()))
    assert all(state == states[0] for state in states)
    assert states[0] == list(smca.build_detector(tiny_config()).state_dict())
