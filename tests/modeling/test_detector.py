"""The whole detector: parameter counts, padding, variants, detections."""

import pytest
import torch
from torch.testing import assert_close

from smca.config import ConfigError
from smca.modeling import build_detector, detect
from smca.modeling.detector import pad_images
from smca.structures import Detections, Predictions


@pytest.mark.parametrize(
    ("name", "opts", "millions", "tolerance"),
    [
        ("smca_R50_50ep", [], 39.5, 0.15),
        ("smca_R50_108ep", [], 39.5, 0.15),
        ("smca_R101_50ep", [], 58.5, 0.3),
        ("smca_single_scale_R50_50ep", [], 41.4, 0.2),
        ("smca_single_scale_R50_108ep", [], 41.4, 0.2),
        # Table 3.
        ("smca_R50_50ep", ["MODEL.SMCA.DECODER.SCALE_SELECTION", False], 39.5, 0.05),
        ("smca_R50_50ep", ["MODEL.SMCA.ENCODER.BLOCKS", ["intra"] * 3], 37.9, 0.05),
        ("smca_R50_50ep", ["MODEL.SMCA.ENCODER.BLOCKS", ["multi"] * 3], 37.9, 0.05),
        ("smca_R50_50ep", ["MODEL.SMCA.ENCODER.SHARE_ATTENTION", False], 42.2, 0.05),
        ("smca_R50_50ep", ["MODEL.SMCA.ENCODER.SHARE_FFN", False], 44.7, 0.1),
    ],
)
def test_parameters_are_the_papers(config, name, opts, millions, tolerance):
    with torch.device("meta"):
        detector = build_detector(config(name, *opts))
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert abs(trained / 1e6 - millions) < tolerance


VARIANTS = [
    [],
    ["MODEL.SMCA.IN_FEATURES", ["res5"], "MODEL.SMCA.NUM_SCALES", 1],
    ["MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.STEM_TYPE", "conv"],
    ["MODEL.SMCA.IN_FEATURES", ["res3", "res4", "res5"]],
    ["MODEL.SMCA.IN_FEATURES", ["res4"], "MODEL.SMCA.NUM_SCALES", 3],
    ["MODEL.SMCA.MODULATION.HEADS", "shared"],
    *(["MODEL.SMCA.MODULATION.SCALE", kind] for kind in ("fixed", "single", "oriented")),
    [
        *("MODEL.SMCA.MODULATION.HEADS", "shared", "MODEL.SMCA.MODULATION.SCALE", "fixed"),
        *("MODEL.SMCA.DECODER.SCALE_SELECTION", False),
    ],
    ["MODEL.SMCA.DECODER.SCALE_SELECTION", False],
    ["MODEL.SMCA.DECODER.SHARE_KEY_VALUE", False],
    ["MODEL.SMCA.ENCODER.SHARE_ATTENTION", False, "MODEL.SMCA.ENCODER.SHARE_FFN", False],
    ["MODEL.SMCA.ENCODER.BLOCKS", []],
    ["MODEL.SMCA.MODULATION.CENTER_LAYERS", 2, "MODEL.SMCA.LOSS.CLASSIFICATION", "softmax"],
    ["MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder"],
    ["MODEL.SMCA.DECODER.NAME", "DETRDecoder"],
    ["MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"],
    [
        *("MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"),
        *("MODEL.SMCA.CONDITIONAL.REFERENCE", "parameter"),
    ],
    *(
        [
            *("MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"),
            *("MODEL.SMCA.CONDITIONAL.SPATIAL_QUERY", f"CSQ-{kind}"),
        ]
        for kind in "CTPI"
    ),
    *(
        [
            *("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder", "MODEL.SMCA.NECK.NORM", "GN"),
            *("MODEL.SMCA.DECODER.NAME", "DeformableDecoder"),
            *("MODEL.SMCA.DEFORMABLE.REFINE", refine),
        ]
        for refine in (False, True)
    ),
    ["MODEL.SMCA.NECK.NORM", "GN", "MODEL.SMCA.NECK.POSITION_OFFSET", -0.5],
    [
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES5_DILATION", 2),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 8),
    ],
]


@pytest.mark.parametrize("opts", VARIANTS, ids=lambda opts: " ".join(map(str, opts)) or "default")
def test_padding_never_changes_a_prediction(tiny_config, opts):
    """An image alone and the same image padded in a batch; and every parameter is trained."""
    torch.manual_seed(0)
    cfg = tiny_config(*opts)
    detector = build_detector(cfg)
    images = [torch.randint(256, (3, h, w)) for h, w in ((70, 90), (128, 100), (64, 64))]
    mean, std = torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 60.0)

    # Running statistics that are not those of an untrained network.
    detector.train()
    predictions = detector(*pad_images(images, mean=mean, std=std))
    assert predictions.logits.shape[:3] == (2, 3, cfg.MODEL.SMCA.NUM_QUERIES)
    (predictions.logits.square().mean() + predictions.boxes.square().mean()).backward()
    untrained = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not untrained

    detector.eval()
    with torch.no_grad():
        together = detector(*pad_images(images, mean=mean, std=std))
        for i, image in enumerate(images):
            alone = detector(*pad_images([image], mean=mean, std=std))
            assert_close(together.boxes[:, i : i + 1], alone.boxes, atol=1e-4, rtol=0)
            assert_close(together.logits[:, i : i + 1], alone.logits, atol=1e-4, rtol=1e-4)


ONE_SIZE = [
    [],
    ["MODEL.RESNETS.NORM", "GN", "MODEL.SMCA.NECK.NORM", "GN"],
    ["MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder"],
    ["MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"],
    [
        *("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder"),
        *("MODEL.SMCA.DECODER.NAME", "DeformableDecoder"),
    ],
]


@pytest.mark.parametrize("opts", ONE_SIZE, ids=lambda opts: " ".join(opts) or "default")
@pytest.mark.parametrize("size", [(96, 128), (64, 90)], ids=["whole", "padded"])
def test_one_size_may_stand_for_all_images(tiny_config, opts, size):
    torch.manual_seed(0)
    detector = build_detector(tiny_config(*opts)).eval()
    images = torch.randn(3, 3, 96, 128)
    images[:, :, size[0] :], images[..., size[1] :] = 0, 0
    with torch.no_grad():
        expected, found = detector(images, [size] * 3), detector(images, [size])
    assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
    assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-6)
    each, of_one = (
        detect(expected, sizes, max_detections=5) for sizes in ([(50, 70)] * 3, [(50, 70)])
    )
    for image, other in zip(each, of_one, strict=True):
        assert_close(image.boxes, other.boxes, rtol=0, atol=0)


def test_pad_images_normalises_and_pads_with_zeros():
    images = [torch.full((3, 2, 3), 100, dtype=torch.uint8), torch.full((3, 4, 1), 50)]
    mean, std = torch.tensor([10.0, 20, 30]).view(3, 1, 1), torch.full((3, 1, 1), 2.0)
    batch, sizes = pad_images(images, mean=mean, std=std)
    assert sizes == [(2, 3), (4, 1)] and batch.shape == (2, 3, 4, 3)
    assert_close(batch[0, :, :2, :3], ((100 - mean) / 2).expand(3, 2, 3))
    assert_close(batch[1, :, :, 1:], torch.zeros(3, 4, 2))


def test_pad_images_takes_channels_last_and_leaves_its_images():
    """The native mapper's images are pictures' (h, w, 3) bytes, seen as (3, h, w)."""
    torch.manual_seed(0)
    images = [torch.randint(256, (7, 5, 3), dtype=torch.uint8).permute(2, 0, 1)]
    images.append(images[0].float())
    before = [image.clone() for image in images]
    mean, std = torch.tensor([123.7, 116.3, 103.5]).view(3, 1, 1), torch.full((3, 1, 1), 57.1)
    batch, _ = pad_images(images, mean=mean, std=std)
    assert batch.is_contiguous()
    for found, image, same in zip(batch, images, before, strict=True):
        assert_close(found, (image - mean) / std, rtol=0, atol=0)
        assert_close(image, same, rtol=0, atol=0)


def test_detections_are_the_best_scores_of_all_queries_and_classes():
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 2, 5, 3), torch.rand(1, 2, 5, 4)
    predictions = Predictions(logits=logits, boxes=boxes, centers=torch.rand(2, 5, 2))
    found = detect(predictions, [(100, 200), (10, 20)], max_detections=4)
    for b, (height, width) in enumerate([(100, 200), (10, 20)]):
        every = sorted(
            ((logits[0, b, n, k].sigmoid().item(), n, k) for n in range(5) for k in range(3)),
            reverse=True,
        )[:4]
        assert isinstance(found[b], Detections)
        assert_close(found[b].scores, torch.tensor([score for score, _, _ in every]))
        assert found[b].labels.tolist() == [k for _, _, k in every]
        for box, (_, n, _) in zip(found[b].boxes, every, strict=True):
            cx, cy, w, h = boxes[0, b, n].tolist()
            expected = [(cx - w / 2) * width, (cy - h / 2) * height]
            expected += [(cx + w / 2) * width, (cy + h / 2) * height]
            assert_close(box, torch.tensor(expected))


def test_softmax_detections_have_one_class_a_query():
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 5, 4)
    predictions = Predictions(logits=logits, boxes=torch.rand(1, 1, 5, 4), centers=None)
    (found,) = detect(predictions, [(1, 1)], max_detections=100, softmax=True)
    scores, labels = logits[0, 0].softmax(-1)[:, :3].max(-1)
    order = scores.argsort(descending=True)
    assert_close(found.scores, scores[order])
    assert found.labels.tolist() == labels[order].tolist()


def test_scores_start_at_one_percent(tiny_config):
    torch.manual_seed(0)
    detector = build_detector(tiny_config()).eval()
    scores = detector(torch.randn(1, 3, 64, 64), [(64, 64)]).logits.sigmoid()
    assert 0.002 < scores.mean() < 0.05


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("MODEL.SMCA.MODULATION.SCALE", "round", "'oriented'"),
        ("MODEL.SMCA.MODULATION.HEADS", "many", "'shared'"),
        ("MODEL.SMCA.ENCODER.NAME", "NoSuchEncoder", "IntraMultiEncoder"),
        ("MODEL.SMCA.DECODER.NAME", "NoSuchDecoder", "SMCADecoder"),
        ("MODEL.SMCA.ENCODER.BLOCKS", ["inter"], "'multi'"),
        ("MODEL.SMCA.HIDDEN_DIM", 30, "NHEADS"),
        ("MODEL.SMCA.NUM_QUERIES", 0, "at least 1"),
        ("MODEL.SMCA.DROPOUT", 1.5, r"\[0, 1\)"),
        ("MODEL.META_ARCHITECTURE", "RetinaNet", "SMCA"),
        ("MODEL.RESNETS.RES5_DILATION", 4, "2"),
        ("MODEL.SMCA.ENCODER.KERNEL_SIZE", 4, "odd"),
        ("MODEL.SMCA.CONDITIONAL.SPATIAL_QUERY", "CSQ-X", "CSQ-I"),
        ("MODEL.SMCA.CONDITIONAL.REFERENCE", "image", "'parameter'"),
        ("MODEL.SMCA.NECK.NORM", "BN", "'GN'"),
        ("MODEL.SMCA.DEFORMABLE.NUM_POINTS", 0, "at least 1"),
    ],
)
def test_impossible_values_are_named_with_what_is_allowed(tiny_config, key, value, allowed):
    with pytest.raises(ConfigError, match=rf"(?s){key}.*{allowed}"):
        build_detector(tiny_config(key, value))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder", "MODEL.SMCA.NUM_SCALES", 1]
            + ["MODEL.SMCA.IN_FEATURES", ["res5"]],
            "MODEL.SMCA.NUM_SCALES is 1.*at least 2",
        ),
        (
            ["MODEL.SMCA.DECODER.NAME", "DeformableDecoder", "MODEL.SMCA.LOSS.AUXILIARY", False]
            + ["MODEL.SMCA.DEFORMABLE.REFINE", True],
            "MODEL.SMCA.LOSS.AUXILIARY is False.*must be True",
        ),
    ],
)
def test_values_that_do_not_go_together_are_named(tiny_config, opts, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(tiny_config(*opts))
