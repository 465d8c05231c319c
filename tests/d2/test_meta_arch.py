"""The meta-architecture: built from Detectron2's config, around its backbones, in its formats."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.export import TracingAdapter  # noqa: E402
from detectron2.modeling import META_ARCH_REGISTRY, build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402

import smca.d2  # noqa: E402
from smca.config import ConfigError, load_cfg  # noqa: E402
from smca.modeling import Encoder, build_detector  # noqa: E402
from smca.modeling.detector import pad_images  # noqa: E402

ROOT = Path(__file__).parents[2]
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.SMCA.HIDDEN_DIM", 32, "MODEL.SMCA.NHEADS", 4),
    *("MODEL.SMCA.NUM_QUERIES", 10, "MODEL.SMCA.DECODER.NUM_LAYERS", 2),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 32, "MODEL.SMCA.NUM_CLASSES", 3),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small_cfg(*opts):
    cfg = get_cfg()
    smca.d2.add_smca_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SMCA"
    cfg.merge_from_list([*SMALL, *opts])
    return cfg


def images(*sizes, objects=2):
    """Detectron2's inputs, of (h, w) pixels each."""
    inputs = []
    for h, w in sizes:
        instances = Instances((h, w))
        corner = torch.rand(objects, 2) * torch.tensor([w, h]) / 2
        instances.gt_boxes = Boxes(torch.cat([corner, corner * 1.8 + 1], dim=1))
        instances.gt_classes = torch.arange(objects) % 3
        image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances})
    return inputs


def test_three_lines_on_detectron2s_defaults():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    smca.d2.add_smca_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SMCA"
    model = build_model(cfg).eval()
    assert isinstance(model, META_ARCH_REGISTRY.get("SMCA"))
    assert model.device == torch.device("cpu")
    with torch.no_grad():
        (result,) = model(images((64, 80)))
    assert len(result["instances"]) == 100


def test_the_papers_model():
    cfg = get_cfg()
    smca.d2.add_smca_config(cfg)
    load_cfg(cfg, str(ROOT / "configs" / "smca_R50_108ep.yaml"), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert isinstance(model.backbone, smca.d2.SMCAResNet)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == pytest.approx(39.5e6, abs=0.15e6)


def test_losses_are_true_losses_and_train_every_parameter():
    model = build_model(small_cfg()).train()
    losses = model(images((64, 80), (70, 50)))
    names = [f"loss_{kind}{layer}" for kind in ("class", "l1", "giou") for layer in ("_0", "")]
    assert sorted(losses) == sorted(names)
    sum(losses.values()).backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


def test_images_without_objects_train_as_background():
    model = build_model(small_cfg()).train()
    losses = model(images((64, 80), (64, 80), objects=0))
    assert losses["loss_class"] > 0
    assert losses["loss_l1"] == losses["loss_giou"] == 0


def test_results_are_the_inner_detectors_at_the_wanted_size():
    cfg = small_cfg("MODEL.RESNETS.STRIDE_IN_1X1", False)
    cfg.MODEL.BACKBONE.NAME = "build_smca_resnet_backbone"
    model = build_model(cfg).eval()
    inner = build_detector(cfg).eval()
    assert list(inner.state_dict()) == list(model.state_dict())
    inner.load_state_dict(model.state_dict())
    inputs = images((64, 80), (70, 50))
    inputs[0] |= {"height": 640, "width": 800}
    with torch.no_grad():
        results = [result["instances"] for result in model(inputs)]
        padded, sizes = pad_images(
            [image["image"] for image in inputs], mean=model.pixel_mean, std=model.pixel_std
        )
        predictions = inner(padded, sizes)
    for i, (h, w) in enumerate([(640, 800), (70, 50)]):
        found = results[i]
        assert found.image_size == (h, w)
        scores = predictions.logits[-1, i].sigmoid()
        order = scores.flatten().argsort(descending=True)
        queries, labels = torch.unravel_index(order, scores.shape)
        cx, cy, bw, bh = predictions.boxes[-1, i, queries].unbind(-1)
        boxes = torch.stack([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2], dim=1)
        expected = boxes * torch.tensor([w, h, w, h])
        torch.testing.assert_close(found.scores, scores[queries, labels])
        torch.testing.assert_close(found.pred_classes, labels)
        torch.testing.assert_close(found.pred_boxes.tensor, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("build_smca_resnet_backbone", ["res5"]),
        ("build_resnet_backbone", ["res3", "res4", "res5"]),
        ("build_resnet_fpn_backbone", ["p4", "p5"]),
    ],
)
def test_any_backbone_of_detectron2(name, features):
    cfg = small_cfg("MODEL.BACKBONE.NAME", name, "MODEL.SMCA.IN_FEATURES", features)
    cfg.MODEL.SMCA.NUM_SCALES = 3
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    if "fpn" in name:
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES
    model = build_model(cfg)
    assert model.has_unread_maps == ("fpn" in name)
    inputs = images((63, 81), (50, 45))
    sum(model.train()(inputs).values()).backward()
    with torch.no_grad():
        assert [len(result["instances"]) for result in model.eval()(inputs)] == [30, 30]


def test_a_part_of_another_project_by_name():
    if "OneBlockEncoder" not in smca.d2.SMCA_ENCODER_REGISTRY:

        @smca.d2.SMCA_ENCODER_REGISTRY.register()
        class OneBlockEncoder(Encoder):
            def __init__(self, *, dim):
                super().__init__()
                self.linear = nn.Linear(dim, dim)

            @classmethod
            def from_config(cls, cfg):
                return {"dim": cfg.MODEL.SMCA.HIDDEN_DIM}

            def forward(self, memory):
                return memory.with_tokens(self.linear(memory.tokens))

    model = build_model(small_cfg("MODEL.SMCA.ENCODER.NAME", "OneBlockEncoder"))
    assert list(model.encoder.state_dict()) == ["linear.weight", "linear.bias"]
    assert model.train()(images((64, 80)))["loss_l1"] > 0


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.SMCA.ENCODER.NAME", "Encoder"], "MODEL.SMCA.ENCODER.NAME.*IntraMultiEncoder"),
        (["MODEL.SMCA.NHEADS", 5], "MODEL.SMCA.HIDDEN_DIM"),
        (["MODEL.SMCA.IN_FEATURES", ["p4"]], "IN_FEATURES names 'p4'.*res4"),
    ],
)
def test_impossible_values_are_refused(opts, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_cfg(*opts))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["SMCADecoder", "ConditionalDecoder"])
def test_files_that_detectron2_traces_run_where_gradients_are_enabled(d2_config, name):
    model = build_model(d2_config("MODEL.SMCA.DECODER.NAME", name)).eval()
    image = torch.rand(3, 64, 96) * 255
    adapter = TracingAdapter(model, [{"image": image}])
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    first = traced(image)
    for _ in range(3):
        torch.testing.assert_close(traced(image), first)
