"""Groups of queries: each trains the decoder as if it were alone, and inference has the first."""

import pytest
import torch
from torch.testing import assert_close

from smca.checkpoints import SafeCheckpointing, load
from smca.checkpoints.names import QUERIES
from smca.errors import ConfigError
from smca.modeling import SMCA_DECODER_REGISTRY, build_detector
from smca.modeling.decoder import by_group
from smca.modeling.smca_decoder import SMCADecoder
from smca.training import SetCriterion, Targets

QUERY_GROUPS = "MODEL.SMCA.QUERY_GROUPS"
DECODER, DEFORMABLE = "MODEL.SMCA.DECODER.NAME", "MODEL.SMCA.DEFORMABLE"
MODELS = {
    "SMCA": (),
    "SMCA, single scale": ("MODEL.SMCA.NUM_SCALES", 1, "MODEL.SMCA.IN_FEATURES", ["res4"]),
    "DETR": (DECODER, "DETRDecoder", "MODEL.SMCA.LOSS.CLASSIFICATION", "softmax"),
    "Conditional DETR": (DECODER, "ConditionalDecoder"),
    "learned references": (
        *(DECODER, "ConditionalDecoder", "MODEL.SMCA.CONDITIONAL.REFERENCE", "parameter"),
    ),
    "anchored": (DECODER, "AnchoredSMCADecoder"),
    "two stages": (DECODER, "AnchoredSMCADecoder", "MODEL.SMCA.TWO_STAGE", True),
    "Deformable DETR": (DECODER, "DeformableDecoder"),
    "refined": (DECODER, "DeformableDecoder", f"{DEFORMABLE}.REFINE", True),
}
SIZES = [(64, 96), (50, 96), (64, 80)]


@pytest.fixture
def build(tiny_config):
    """``build(model, groups)``: a detector in float64 without dropout, and its criterion."""

    def made(model, groups):
        exact = ("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0)
        cfg = tiny_config(*exact, *MODELS[model], QUERY_GROUPS, groups)
        torch.manual_seed(groups)
        detector = build_detector(cfg).double()
        for name, parameter in detector.named_parameters():
            if "box_head" in name:  # boxes that differ from their references
                torch.nn.init.normal_(parameter, std=0.2)
        return detector, SetCriterion(**SetCriterion.from_config(cfg))

    return made


def padded_images():
    images = torch.zeros(3, 3, 64, 96, dtype=torch.float64)
    for image, (h, w) in zip(images, SIZES, strict=True):
        image[:, :h, :w].normal_()
    return images


def objects(*counts):
    corners = [torch.rand(count, 2, 2).double().sort(1).values * 60 for count in counts]
    labels = [torch.randint(3, (count,)) for count in counts]
    return Targets.from_images(labels, [c.flatten(1) for c in corners], SIZES, torch.device("cpu"))


def group_of(state, group, groups):
    """The model that has one group of queries alone."""
    rows = {name: state[name].chunk(groups)[group] for name in QUERIES if name in state}
    return {**state, **rows}


# The last image has more objects than a group has queries.
@pytest.mark.parametrize("counts", [(2, 0, 13), (0, 0, 0)], ids=["objects", "no objects"])
@pytest.mark.parametrize("model", MODELS)
def test_the_loss_of_three_groups_is_the_mean_of_three_models(build, model, counts):
    """So are the gradients, and the queries' are a third each."""
    images, targets = padded_images(), objects(*counts)
    detector, criterion = build(model, 3)
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    losses = criterion(detector.train()(images, SIZES), targets)
    sum(losses.values()).backward()

    each, gradients = [], []
    for group in range(3):
        alone, criterion = build(model, 1)
        alone.load_state_dict(group_of(state, group, 3))
        each.append(criterion(alone.train()(images, SIZES), targets))
        sum(each[-1].values()).backward()
        gradients.append({name: p.grad for name, p in alone.named_parameters()})
    assert losses["loss_class"] > 0
    for name, loss in losses.items():
        assert_close(loss, torch.stack([one[name] for one in each]).mean())
    for name, parameter in detector.named_parameters():
        found = torch.stack([one[name] for one in gradients]) / 3
        expected = found.flatten(0, 1) if name in QUERIES else found.sum(0)
        assert_close(parameter.grad, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_no_group_learns_from_another(build, model):
    detector, _ = build(model, 3)
    predictions = detector.train()(padded_images(), SIZES)
    assert predictions.logits.shape == (2, 9, 10, 3 + (model == "DETR"))
    of_each = predictions.logits.square().sum(-1) + predictions.boxes.square().sum(-1)
    # The second group of each image.
    of_each[:, 1::3].sum().backward()
    learned = [p.grad.chunk(3) for n, p in detector.named_parameters() if n in QUERIES]
    assert len(learned) == 1 + (model == "learned references")
    for first, second, third in learned:
        assert first.eq(0).all() and third.eq(0).all() and second.ne(0).any(1).all()


@pytest.mark.parametrize("model", MODELS)
def test_inference_is_that_of_a_model_with_the_first_group(build, model, tmp_path):
    detector, _ = build(model, 5)
    SafeCheckpointing(detector, str(tmp_path)).save("five")
    images = padded_images()
    with torch.no_grad():
        found = detector.eval()(images, SIZES)
        for groups in (1, 2):
            other, _ = build(model, groups)
            load(other, tmp_path / "five.pth", strict=True)
            expected = other.eval()(images, SIZES)
            assert found.logits.shape == expected.logits.shape
            assert torch.equal(found.logits, expected.logits)
            assert torch.equal(found.boxes, expected.boxes)


def test_one_group_adds_nothing():
    queries, targets = torch.randn(2, 6, 4), objects(1, 0, 2)
    assert by_group(queries, 1) is queries and targets.repeat(1) is targets
    assert [rows.tolist() for rows in by_group(queries, 3)] == [
        queries[image, 2 * group : 2 * group + 2].tolist()
        for image in range(2)
        for group in range(3)
    ]


def test_a_decoder_that_knows_no_groups_is_refused(tiny_config):
    class Plain(SMCADecoder):
        @classmethod
        def from_config(cls, cfg):
            options = super().from_config(cfg)
            return {name: options[name] for name in options if name != "query_groups"}

    SMCA_DECODER_REGISTRY._do_register("Plain", Plain)
    try:
        with pytest.raises(ConfigError, match=r"QUERY_GROUPS is 2; it must be 1 with .*NAME Plain"):
            build_detector(tiny_config(DECODER, "Plain", QUERY_GROUPS, 2))
    finally:
        SMCA_DECODER_REGISTRY._obj_map.pop("Plain")
