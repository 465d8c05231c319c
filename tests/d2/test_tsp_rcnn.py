"""TSP-RCNN: its sizes, and the parts of its model beside references that are written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from tiny_tsp import small_config  # noqa: E402
from torchvision.ops import nms, roi_align  # noqa: E402

from smca.analysis.counting import count_model, count_parameters  # noqa: E402
from smca.config import ConfigError  # noqa: E402
from smca.d2.analysis import DETECTRON2  # noqa: E402
from smca.training.solver import role_of  # noqa: E402

SIZES = [(64, 96), (50, 80)]


def build(*opts):
    torch.manual_seed(0)
    return build_model(small_config(*opts)).double()


def random_boxes(number, size):
    """(number, 4), xyxy in an image of ``size`` (h, w) pixels, at least 4 wide and high."""
    height, width = size
    far = torch.tensor([width - 4.0, height - 4.0], dtype=torch.float64)
    start = torch.rand(number, 2, dtype=torch.float64) * far
    return torch.cat((start, start + 4 + torch.rand(number, 2) * (far - start)), dim=1)


@pytest.mark.parametrize(
    ("name", "trained", "all_of_them"),
    [
        ("tsp_rcnn_R50_36ep", 56_473_278, 56_695_678),
        ("tsp_rcnn_plus_R50_96ep", 56_473_278, 56_695_678),
        ("tsp_rcnn_R101_36ep", 75_413_182, 75_635_582),
        ("tsp_rcnn_plus_R101_96ep", 75_413_182, 75_635_582),
    ],
)
def test_published_sizes(name, trained, all_of_them):
    cfg = DETECTRON2.read(f"configs/baselines/{name}.yaml", [])
    model = DETECTRON2.build(cfg, "meta").model
    counts = count_parameters(model)
    assert (counts.trainable, counts.parameters) == (trained, all_of_them)
    # AdamW trains the encoder alone, and clips its gradients.
    encoder = [
        name for name, _ in model.named_parameters() if role_of(name.split(".")) == "encoder"
    ]
    assert all(name.startswith("roi_heads.box_head.encoder.") for name in encoder)
    assert sum(dict(model.named_parameters())[name].numel() for name in encoder) == 18_915_328


@pytest.mark.slow
def test_multiply_adds():
    """The public code's are 181.2 G by the same rules."""
    cfg = DETECTRON2.read("configs/baselines/tsp_rcnn_R50_36ep.yaml", [])
    counts = count_model(DETECTRON2.build(cfg, "cpu"), size=(800, 1066), activations=False)
    assert counts.parts[""].multiply_adds == pytest.approx(181.2e9, rel=0.01)
    assert counts.parts["proposal_generator"].multiply_adds == pytest.approx(43.0e9, rel=0.01)


def batch_norm(x):
    """x (B, C, h, w) with each channel's mean 0 and variance 1, over the batch."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt()


def test_the_pyramid():
    fpn = build().backbone.train()
    maps = fpn(torch.randn(2, 3, 128, 192, dtype=torch.float64))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        **{"p2": (2, 16, 32, 48), "p3": (2, 16, 16, 24), "p4": (2, 16, 8, 12)},
        **{"p5": (2, 16, 4, 6), "p6": (2, 16, 2, 3), "p7": (2, 16, 1, 2)},
    }
    first, second = fpn.top_block.p6.conv, fpn.top_block.p7.conv
    p6 = batch_norm(F.conv2d(maps["p5"], first.weight, first.bias, stride=2, padding=1))
    assert_close(maps["p6"], p6)
    p7 = batch_norm(F.conv2d(p6.clamp(min=0), second.weight, second.bias, stride=2, padding=1))
    assert_close(maps["p7"], p7)


def test_levels_share_convolutions_but_not_norms():
    head = build().proposal_generator.rpn_head.train()
    for norm in (n for n in head.modules() if isinstance(n, torch.nn.modules.batchnorm._BatchNorm)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    maps = [torch.randn(2, 16, 8 >> n, 12 >> n, dtype=torch.float64) for n in range(3)]
    logits, deltas = head(maps)
    for level, x in enumerate(maps):
        for tower, last, found in (
            (head.objectness_tower, head.objectness_logits, logits[level]),
            (head.anchor_tower, head.anchor_deltas, deltas[level]),
        ):
            y = x
            for conv, norm in zip(tower.convs, tower.norms[level], strict=True):
                y = batch_norm(F.conv2d(y, conv.weight, conv.bias, padding=1))
                y = (y * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
            y = F.conv2d(y, last.weight, last.bias)
            assert_close(found, y)
            assert y.shape[1:] == (9 if last is head.objectness_logits else 36, *x.shape[2:])


def test_anchors():
    model = build_model(small_config())
    first, second, *_ = model.proposal_generator.anchor_generator.cell_anchors
    sides = first[:, 2:] - first[:, :2]
    expected = [
        (size / ratio**0.5, size * ratio**0.5)
        for size in (32, 40.32, 51.80)
        for ratio in (0.5, 1.0, 2.0)
    ]
    assert_close(sides, torch.tensor(expected))
    assert len(second) == 9


def position(box, size, dim):
    """The encoding of one box, number by number."""
    x1, y1, x2, y2 = box.tolist()
    h, w = size
    numbers = [(x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h]
    encoded = []
    for number in (*numbers, x1 / w, y1 / h, x2 / w, y2 / h):
        for k in range(dim // 16):
            angle = 2 * math.pi * number / 10000 ** (2 * k / (dim // 8))
            encoded += [math.sin(angle), math.cos(angle)]
    return encoded


def attend(attention, keys, values):
    """One image's self-attention (P, C), head by head."""
    query, key, value = attention.q_proj(keys), attention.k_proj(keys), attention.v_proj(values)
    heads = []
    parts = (x.chunk(attention.num_heads, dim=-1) for x in (query, key, value))
    for q, k, v in zip(*parts, strict=True):
        heads.append((q @ k.T / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return attention.out_proj(torch.cat(heads, dim=-1))


def encoded(head, pooled, boxes, size):
    """One image's encoded proposals (P, C)."""
    places = torch.tensor([position(box, size, 32) for box in boxes], dtype=pooled.dtype)
    tokens = head.input_proj(pooled.flatten(1)) + head.position_proj(places)
    x = F.layer_norm(tokens, (32,), head.norm.weight, head.norm.bias)
    for block in head.encoder.blocks:
        y = block.norm1(x)
        x = x + attend(block.attention, y + places, y)
        x = x + block.ffn(block.norm2(x))
    return head.encoder.norm(x)


@pytest.mark.parametrize("counts", [(5, 5), (5, 3), (2, 0), (1, 6)])
def test_tokens_of_an_image_see_each_other_alone(counts):
    """Whatever the number of proposals beside them is, whose padding leaves no trace."""
    head = build().roi_heads.box_head.eval()
    boxes = [random_boxes(number, size) for number, size in zip(counts, SIZES, strict=True)]
    pooled = torch.randn(sum(counts), 16, 7, 7, dtype=torch.float64)
    found = head(pooled, boxes, SIZES)
    images = zip(pooled.split(counts), boxes, SIZES, strict=True)
    expected = [encoded(head, *image) for image in images if len(image[0])]
    assert_close(found, torch.cat(expected))


def detect(logits, deltas, boxes, size, threshold):
    """(score, box, class) of one image's detections, best first."""
    height, width = size
    found = []
    for label in range(3):
        d = deltas[:, 4 * label : 4 * label + 4] / torch.tensor([10.0, 10, 5, 5])
        sides = boxes[:, 2:] - boxes[:, :2]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + d[:, :2] * sides
        sides = sides * d[:, 2:].exp()
        decoded = torch.cat((centers - sides / 2, centers + sides / 2), dim=1).clamp(min=0)
        decoded = torch.minimum(decoded, torch.tensor([width, height, width, height]))
        scores = logits.softmax(1)[:, label]
        kept = nms(decoded, scores, threshold) if threshold < 1 else range(len(scores))
        found += [(scores[i].item(), decoded[i].tolist(), label) for i in kept]
    return sorted(found, reverse=True)[:100]


@pytest.mark.parametrize("threshold", [0.7, 1.0])
def test_results(threshold):
    """From the pyramid to the detections, with and without suppression."""
    options = "MODEL.ROI_HEADS.NMS_THRESH_TEST", threshold, "MODEL.ROI_HEADS.IN_FEATURES", ["p3"]
    heads = build(*options).float().roi_heads.eval()
    predictor = heads.box_predictor
    for layer in (predictor.cls_score, predictor.bbox_pred[-1]):
        torch.nn.init.normal_(layer.weight, std=0.3)
    p3 = torch.randn(2, 16, 8, 12)
    boxes = [
        random_boxes(number, size).float() for number, size in zip((40, 25), SIZES, strict=True)
    ]
    images = zip(boxes, SIZES, strict=True)
    proposals = [Instances(size, proposal_boxes=Boxes(image)) for image, size in images]
    detections, losses = heads(None, {"p3": p3}, proposals)
    assert losses == {}
    for number, (image, size) in enumerate(zip(boxes, SIZES, strict=True)):
        rois = torch.cat((torch.full((len(image), 1), number), image), dim=1)
        hidden = encoded(heads.box_head, roi_align(p3, rois, 7, 1 / 8, 0, True), image, size)
        logits, deltas = predictor.cls_score(hidden), predictor.bbox_pred(hidden)
        expected = detect(logits, deltas, image, size, threshold)
        found = detections[number]
        possible = min(100, 3 * len(image))
        assert len(found) == len(expected) == possible or 0 < len(expected) < possible * threshold
        scores, decoded, labels = zip(*expected, strict=True)
        assert_close(found.scores, torch.tensor(scores))
        assert_close(found.pred_boxes.tensor, torch.tensor(decoded), rtol=1e-5, atol=1e-4)
        assert found.pred_classes.tolist() == list(labels)


@pytest.mark.parametrize(("dim", "heads"), [(40, 4), (48, 5)])
def test_sizes_that_do_not_divide(dim, heads):
    with pytest.raises(ConfigError, match=rf"HIDDEN_DIM is {dim}; .* 16 and .*NHEADS \({heads}\)"):
        build("MODEL.SMCA.HIDDEN_DIM", dim, "MODEL.SMCA.NHEADS", heads)
