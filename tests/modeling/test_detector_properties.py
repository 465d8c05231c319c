"""Whole detectors of drawn configurations, on batches of drawn sizes: from pixels to detections.

Either a value that cannot work is named, or the model trains and detects with finite numbers.
"""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import smca
from smca.config import ConfigError, flatten, load_cfg
from smca.modeling import build_detector, detect
from smca.modeling.detector import pad_images
from smca.structures import Predictions
from smca.training import SetCriterion, Targets

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = load_cfg(smca.get_cfg(), str(CONFIGS / "quickstart.yaml"))
BASE.MODEL.RESNETS.DEPTH = 10
BASE.MODEL.SMCA.IN_FEATURES, BASE.MODEL.SMCA.NUM_SCALES = ["res4", "res5"], 3
FEATURES = ("res2", "res3", "res4", "res5")
MEAN, STD = torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 60.0)


def configured(options):
    cfg = BASE.clone()
    cfg.merge_from_list([part for item in options.items() for part in item])
    return cfg


@st.composite
def configurations(draw):
    """Changes of the tiny config that go together, most of them."""

    def one_of(*values):
        return draw(st.sampled_from(values))

    heads, channels = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    dim = heads * channels * (1 if heads * channels % 4 == 0 else 4)
    features = sorted(draw(st.sets(st.sampled_from(FEATURES), min_size=1, max_size=3)))
    encoder = one_of("IntraMultiEncoder", "DepthwiseEncoder", "DeformableEncoder")
    decoder = one_of(
        *("SMCADecoder", "AnchoredSMCADecoder", "DETRDecoder"),
        *("ConditionalDecoder", "DeformableDecoder"),
    )
    return {
        "MODEL.SMCA.NHEADS": heads,
        "MODEL.SMCA.HIDDEN_DIM": dim,
        "MODEL.SMCA.DIM_FEEDFORWARD": draw(st.integers(1, 9)),
        "MODEL.SMCA.NUM_CLASSES": draw(st.integers(1, 7)),
        "MODEL.SMCA.NUM_QUERIES": draw(st.integers(1, 7)),
        "MODEL.SMCA.QUERY_GROUPS": draw(st.integers(1, 3)),
        "MODEL.SMCA.IN_FEATURES": features,
        "MODEL.SMCA.NUM_SCALES": len(features) + draw(st.integers(0, 2)),
        "MODEL.SMCA.ATTENTION_DROPOUT": one_of(0.0, 0.1),
        "MODEL.SMCA.NECK.NORM": one_of("", "GN"),
        "MODEL.SMCA.ENCODER.NAME": encoder,
        "MODEL.SMCA.ENCODER.BLOCKS": draw(
            st.lists(st.sampled_from(["intra", "multi"]), max_size=2)
        ),
        "MODEL.SMCA.ENCODER.NUM_LAYERS": draw(st.integers(0, 2)),
        "MODEL.SMCA.ENCODER.KERNEL_SIZE": one_of(1, 3, 5),
        "MODEL.SMCA.ENCODER.SHARE_ATTENTION": draw(st.booleans()),
        "MODEL.SMCA.ENCODER.SHARE_FFN": draw(st.booleans()),
        "MODEL.SMCA.ENCODER.RECOMPUTE": one_of("none", "multi", "all"),
        "MODEL.SMCA.DECODER.NAME": decoder,
        "MODEL.SMCA.DENOISING.ENABLED": decoder == "AnchoredSMCADecoder" and draw(st.booleans()),
        "MODEL.SMCA.TWO_STAGE": decoder == "AnchoredSMCADecoder" and draw(st.booleans()),
        "MODEL.SMCA.ONE_TO_MANY.ENABLED": decoder == "AnchoredSMCADecoder" and draw(st.booleans()),
        "MODEL.SMCA.DENOISING.KIND": one_of("classic", "contrastive"),
        "MODEL.SMCA.DECODER.NUM_LAYERS": draw(st.integers(1, 3)),
        "MODEL.SMCA.DECODER.SHARE_KEY_VALUE": draw(st.booleans()),
        "MODEL.SMCA.DECODER.SCALE_SELECTION": draw(st.booleans()),
        "MODEL.SMCA.MODULATION.HEADS": one_of("multi", "shared"),
        "MODEL.SMCA.MODULATION.SCALE": one_of("fixed", "single", "independent", "oriented"),
        "MODEL.SMCA.MODULATION.CENTER_LAYERS": draw(st.integers(1, 3)),
        "MODEL.SMCA.CONDITIONAL.SPATIAL_QUERY": one_of("CSQ", "CSQ-C", "CSQ-T", "CSQ-P", "CSQ-I"),
        "MODEL.SMCA.CONDITIONAL.REFERENCE": one_of("query", "parameter"),
        "MODEL.SMCA.DEFORMABLE.NUM_POINTS": draw(st.integers(1, 3)),
        "MODEL.SMCA.DEFORMABLE.REFINE": draw(st.booleans()),
        "MODEL.SMCA.LOSS.CLASSIFICATION": one_of("focal", "softmax", "mal", "ia_bce"),
        "MODEL.SMCA.LOSS.AUXILIARY": draw(st.booleans()),
        "MODEL.RESNETS.DEPTH": one_of(10, 10, 18, 50),
        "MODEL.RESNETS.NORM": one_of("FrozenBN", "GN", "", "BN"),
        "MODEL.RESNETS.STEM_TYPE": one_of("basic", "conv"),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": draw(st.integers(1, 20)),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": draw(st.integers(1, 20)),
        "MODEL.RESNETS.WIDTH_PER_GROUP": draw(st.integers(1, 9)),
        "MODEL.RESNETS.NUM_GROUPS": draw(st.integers(1, 3)),
        "MODEL.RESNETS.RES5_DILATION": one_of(1, 2),
        "MODEL.BACKBONE.FREEZE_AT": draw(st.integers(0, 5)),
    }


sides = st.one_of(st.integers(1, 20), st.integers(21, 90))
sizes = st.lists(st.tuples(sides, sides), min_size=1, max_size=3)
seeds = st.integers(0, 2**32 - 1)


def drawn_targets(cfg, sizes, counts):
    boxes, labels = [], []
    for (h, w), count in zip(sizes, counts, strict=True):
        corners = torch.rand(count, 2, 2).sort(1).values + torch.tensor([[0.0], [1e-3]])
        boxes.append(corners.flatten(1) * torch.tensor([w, h, w, h]))
        labels.append(torch.randint(cfg.MODEL.SMCA.NUM_CLASSES, (count,)))
    return Targets.from_images(labels, boxes, sizes, torch.device("cpu"))


def assert_names_a_key(error, cfg):
    assert any(re.search(rf"\b{re.escape(key)}\b", str(error)) for key in flatten(cfg))


@pytest.mark.slow
@settings(max_examples=200)
@given(configurations(), sizes, st.lists(st.integers(0, 12), min_size=3, max_size=3), seeds)
def test_it_trains_and_detects_or_names_a_key(options, sizes, counts, seed):
    torch.manual_seed(seed)
    cfg = configured(options)
    try:
        detector = build_detector(cfg).train()
        criterion = SetCriterion(**SetCriterion.from_config(cfg))
    except ConfigError as error:
        assert_names_a_key(error, cfg)
        return
    images, sizes = pad_images(
        [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes], mean=MEAN, std=STD
    )
    targets = drawn_targets(cfg, sizes, counts[: len(sizes)])
    try:
        predictions = detector(images, sizes, targets)
    except ConfigError as error:  # batch norm on a single cell
        assert_names_a_key(error, cfg)
        assert len(sizes) == 1 and max(sizes[0]) <= 32 and cfg.MODEL.RESNETS.NORM == "BN"
        return
    smca = cfg.MODEL.SMCA
    softmax = smca.LOSS.CLASSIFICATION == "softmax"
    shape = (smca.DECODER.NUM_LAYERS, len(sizes) * smca.QUERY_GROUPS, smca.NUM_QUERIES)
    assert predictions.logits.shape == (*shape, smca.NUM_CLASSES + softmax)
    assert predictions.boxes.shape == (*shape, 4)
    losses = criterion(predictions, targets)
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name

    with torch.no_grad():
        predictions = detector.eval()(images, sizes)
        order = torch.randperm(len(sizes))
        moved = detector(images[order], [sizes[image] for image in order])
    assert_close(moved.logits, predictions.logits[:, order], rtol=1e-3, atol=1e-3)
    assert_close(moved.boxes, predictions.boxes[:, order], rtol=0, atol=1e-3)
    found = detect(predictions, sizes, max_detections=9, softmax=softmax)
    assert_detections_are_sound(found, sizes, smca.NUM_CLASSES)
    most = smca.NUM_QUERIES * (1 if softmax else smca.NUM_CLASSES)
    assert all(len(image.scores) == min(9, most) for image in found)


def assert_detections_are_sound(found, sizes, classes):
    assert len(found) == len(sizes)
    for image, (h, w) in zip(found, sizes, strict=True):
        assert image.boxes.shape == (*image.scores.shape, 4)
        assert ((image.scores >= 0) & (image.scores <= 1)).all()
        assert (image.scores.diff() <= 0).all()
        assert ((image.labels >= 0) & (image.labels < classes)).all()
        # A box of at most the image's size, about a point in the image; not clipped to it.
        ends = image.boxes.unflatten(1, (2, 2))
        limit = torch.tensor([w, h]) * (1 + 1e-5)
        assert ((ends.mean(1) >= 0) & (ends.mean(1) <= limit)).all()
        assert (ends.diff(dim=1) >= 0).all() and (ends.diff(dim=1) <= limit).all()


@settings(max_examples=300)
@given(
    st.one_of(st.integers(1, 5), st.integers(1, 300)),
    st.one_of(st.integers(1, 3), st.integers(1, 200)),
    st.integers(1, 500),
    st.booleans(),
    st.floats(-1, 4),
    st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=2),
    seeds,
)
@example(1, 1, 100, False, 0.0, [(1, 1)], 0)
@example(1, 1, 100, True, 4.0, [(1, 1)], 0)
def test_detections_of_any_numbers(queries, classes, most, softmax, power, sizes, seed):
    """Fewer candidates than are wanted, one query, one class, logits up to 1e4."""
    torch.manual_seed(seed)
    logits = torch.randn(1, len(sizes), queries, classes + softmax) * 10**power
    places = torch.randn(1, len(sizes), queries, 4).mul(10**power).sigmoid()
    predictions = Predictions(logits=logits, boxes=places, centers=None)
    found = detect(predictions, sizes, max_detections=most, softmax=softmax)
    assert_detections_are_sound(found, sizes, classes)
    for image, (h, w), scores, boxes in zip(
        found,
        sizes,
        logits[0].softmax(-1)[..., :-1] if softmax else logits[0].sigmoid(),
        places[0],
        strict=True,
    ):
        candidates = scores.amax(-1) if softmax else scores.flatten()
        assert_close(image.scores, candidates.sort(descending=True).values[:most])
        # Each is the box of a query with this score for this class.
        for box, score, label in list(zip(*vars(image).values(), strict=True))[:3]:
            x, y, width, height = boxes[(scores[:, label] - score).abs() <= 1e-6].T
            corners = torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
            wanted = corners.T * torch.tensor([w, h, w, h])
            assert (wanted - box).abs().amax(1).min() <= 1e-5 * max(w, h)


BAD = {
    "MODEL.SMCA.NUM_CLASSES": st.integers(-5, 0),
    "MODEL.SMCA.NUM_QUERIES": st.integers(-5, 0),
    "MODEL.SMCA.QUERY_GROUPS": st.integers(-5, 0),
    "MODEL.SMCA.NHEADS": st.one_of(st.integers(-5, 0), st.sampled_from([3, 5, 7])),
    "MODEL.SMCA.HIDDEN_DIM": st.one_of(st.integers(-5, 3), st.sampled_from([6, 30, 34])),
    "MODEL.SMCA.DIM_FEEDFORWARD": st.integers(-5, 0),
    "MODEL.SMCA.DROPOUT": st.sampled_from([-0.1, 1.0, 7.0, float("nan"), float("inf")]),
    "MODEL.SMCA.NUM_SCALES": st.integers(-5, 1),
    "MODEL.SMCA.IN_FEATURES": st.sampled_from(
        [[], ["res4", "res4"], ["res5", "res4"], ["res1"], ["res2", "res3", "res4", "res5"]]
    ),
    "MODEL.SMCA.ENCODER.KERNEL_SIZE": st.sampled_from([-1, 0, 2, 4]),
    "MODEL.SMCA.ENCODER.NUM_LAYERS": st.integers(-5, -1),
    "MODEL.SMCA.ENCODER.BLOCKS": st.sampled_from([["inter"], ["intra", ""], ["multi", "all"]]),
    "MODEL.SMCA.DECODER.NUM_LAYERS": st.integers(-5, 0),
    "MODEL.SMCA.MODULATION.BETA": st.sampled_from([0.0, -8.0, float("nan")]),
    "MODEL.SMCA.MODULATION.CENTER_LAYERS": st.integers(-5, 0),
    "MODEL.SMCA.DEFORMABLE.NUM_POINTS": st.integers(-5, 0),
    "MODEL.SMCA.LOSS.FOCAL_ALPHA": st.sampled_from([-0.1, 1.1, float("nan")]),
    "MODEL.SMCA.LOSS.FOCAL_GAMMA": st.sampled_from([-1.0, float("nan"), float("inf")]),
    "MODEL.SMCA.LOSS.L1_WEIGHT": st.sampled_from([-1.0, float("nan"), float("inf")]),
    "MODEL.SMCA.LOSS.NO_OBJECT_WEIGHT": st.sampled_from([-1.0, float("nan"), float("inf")]),
    "MODEL.SMCA.MATCHER.GIOU_COST": st.sampled_from([-1.0, float("nan"), float("inf")]),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": st.integers(-5, 0),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": st.integers(-5, 0),
    "MODEL.RESNETS.NUM_GROUPS": st.integers(-5, 0),
    "MODEL.RESNETS.WIDTH_PER_GROUP": st.integers(-5, 0),
    "MODEL.BACKBONE.FREEZE_AT": st.sampled_from([-1, 6]),
    "MODEL.PIXEL_STD": st.sampled_from([[1.0, 1.0], [0.0, 1.0, 1.0], [1.0, -1.0, 1.0]]),
}


@settings(max_examples=200)
@given(st.data())
def test_a_value_that_cannot_work_is_named(data):
    key = data.draw(st.sampled_from(list(BAD)))
    value = data.draw(BAD[key])
    with pytest.raises(ConfigError, match=rf"\b{re.escape(key)}\b"):
        build_detector(configured({key: value}))
