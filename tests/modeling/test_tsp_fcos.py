"""Each step of TSP-FCOS beside a plain reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from smca.errors import ConfigError
from smca.modeling import build_detector, detect
from smca.structures import Targets
from smca.training import build_criterion

STRIDES = (8, 16, 32, 64, 128)


@pytest.fixture
def tiny(config, tiny_opts):
    """``tiny("KEY", value, ...)``: the config of a tiny TSP-FCOS without dropout."""
    return lambda *opts: config(
        "baselines/tsp_fcos_R50_36ep",
        *tiny_opts,
        *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RESNETS.STRIDE_IN_1X1", False),
        *("MODEL.SMCA.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.SMCA.NUM_CLASSES", 3),
        *("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0),
        *("MODEL.SMCA.TSP.PYRAMID_DIM", 16, "MODEL.SMCA.TSP.NUM_FEATURES", 40),
        *opts,
    )


@pytest.fixture
def distinct(tiny):
    """``distinct("KEY", value, ...)``: the detector in float64, with scores that differ."""

    def build(*opts):
        torch.manual_seed(0)
        detector = build_detector(tiny(*opts)).double()
        for name, parameter in sorted(detector.named_parameters()):
            if "class_head.weight" in name or "box_head" in name or "centerness" in name:
                torch.nn.init.normal_(parameter, std=0.3)
            if name in ("level_embed", "heads.scales"):
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
        for norm in (detector.pyramid.top.p6.bn, detector.pyramid.top.p7.bn):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
        return detector.eval()

    return build


def image_of(height, width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64)


def pyramid(detector, maps):
    """The levels p3 to p7 of one image whose sides are multiples of 32."""
    fpn, levels, above = detector.pyramid, [], 0.0
    inner, outer = fpn.levels.inner_blocks, fpn.levels.layer_blocks
    for n in (2, 1, 0):
        x = F.conv2d(maps[f"res{n + 3}"], *inner[n][0].parameters()) + above
        above = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        levels.insert(0, F.conv2d(x, *outer[n][0].parameters(), padding=1))
    for block, x in ((fpn.top.p6, levels[2]), (fpn.top.p7, None)):
        x = levels[3].relu() if x is None else x
        x = F.conv2d(x, block.conv.weight, block.conv.bias, stride=2, padding=1)
        bn = block.bn
        levels.append(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return levels


def tower(module, x):
    for conv, norm in zip(module.convs, module.norms, strict=True):
        x = F.conv2d(x, conv.weight, conv.bias, padding=1)
        x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias).relu()
    return x


def fractions_by_level(size, shapes):
    """Counts of valid cells along y and x over their number, (rows, columns) a level, as DETR's."""
    mask = torch.zeros(8 * shapes[0][0], 8 * shapes[0][1])
    mask[: size[0], : size[1]] = 1
    for rows, columns in ((4, 4), (2, 2)):  # half the image, and res2
        mask = F.interpolate(mask[None, None], (rows * shapes[0][0], columns * shapes[0][1]))[0, 0]
    found = []
    for shape in shapes:
        mask = F.interpolate(mask[None, None], shape)[0, 0]
        counts = (mask.cumsum(0), mask.cumsum(1))
        ends = counts[0][-1:], counts[1][:, -1:]
        pairs = zip(counts, ends, strict=True)
        found.append([count.double() / (end.double() + 1e-6) for count, end in pairs])
    return found


def sines(value, channels):
    """``channels`` sines and cosines in turn of a value in [0, 1]."""
    angles = [2 * math.pi * value / 10000 ** (2 * (i // 2) / channels) for i in range(channels)]
    return [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)]


def encode(encoder, x, position):
    """Pre-norm blocks on the tokens (N, C) of one image."""
    for block in encoder.blocks:
        attention = block.attention
        normed = block.norm1(x)
        q, k = attention.q_proj(normed + position), attention.k_proj(normed + position)
        parts = (t.chunk(attention.num_heads, dim=-1) for t in (q, k, attention.v_proj(normed)))
        heads = [
            (a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c
            for a, b, c in zip(*parts, strict=True)
        ]
        x = x + attention.out_proj(torch.cat(heads, dim=-1))
        x = x + block.ffn(block.norm2(x))
    return encoder.norm(x)


def reference(detector, image, size, number):
    """Class logits, distances, centre-ness, and (level, row, column) of the best places.

    ``image`` (1, 3, H, W) has sides that 32 divides, and padding around ``size`` (h, w).
    """
    maps = detector.backbone(image)
    places, shapes = [], []  # score, level, row, column, features
    for level, x in enumerate(pyramid(detector, maps)):
        towers = detector.towers
        of_class, of_box = tower(towers.class_tower, x), tower(towers.box_tower, x)
        head = towers.class_head
        scores = F.conv2d(of_class, head.weight, head.bias, padding=1)[0].amax(0)
        features = torch.cat((of_class, of_box), dim=1)[0]
        shapes.append(scores.shape)
        rows, columns = scores.shape
        places += [
            (scores[r, c].item(), level, r, c, features[:, r, c])
            for r in range(rows)
            for c in range(columns)
        ]
    best = sorted(places, key=lambda place: -place[0])[:number]
    tokens = detector.norm(detector.proj(torch.stack([place[-1] for place in best])))
    half, positions, fractions = detector.dim // 2, [], fractions_by_level(size, shapes)
    for _, level, row, column, _ in best:
        y, x = (axis[row, column].item() for axis in fractions[level])
        encoded = tokens.new_tensor(sines(y, half) + sines(x, half))
        positions.append(encoded + detector.level_embed[level])
    encoded, heads = encode(detector.encoder, tokens, torch.stack(positions)), detector.heads
    levels = [place[1] for place in best]
    return (
        heads.class_head(encoded),
        heads.box_head(encoded).relu() * heads.scales[levels][:, None],
        heads.centerness_head(encoded)[:, 0],
        [place[1:4] for place in best],
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "number"), [((96, 128), 40), ((96, 128), 1000), ((75, 101), 40), ((60, 150), 1000)]
)
def test_an_image_is_encoded_as_the_reference_does(distinct, size, number):
    """With 1,000 all places are encoded: a small image has fewer."""
    detector = distinct("MODEL.SMCA.TSP.NUM_FEATURES", number)
    height, width = size
    image = image_of(height, width)
    padded = F.pad(image, (0, -width % 32, 0, -height % 32))
    found = detector(image, [size])
    logits, distances, centerness, places = reference(detector, padded, size, number)
    assert len(places) == number or len(places) < 400
    assert_close(found.logits[0, 0], logits, atol=1e-10, rtol=1e-10)
    assert_close(found.places.distances[0], distances, atol=1e-10, rtol=1e-10)
    assert_close(found.places.centerness[0], centerness, atol=1e-10, rtol=1e-10)
    for index, (level, row, column) in enumerate(places):
        stride = STRIDES[level]
        x, y = (cell * stride + stride // 2 for cell in (column, row))
        assert found.places.points[0, index].tolist() == [x, y]
        left, top, right, bottom = (distances[index] * stride).tolist()
        box = [(x - left) / width, (y - top) / height, (x + right) / width, (y + bottom) / height]
        cx, cy, w, h = found.boxes[0, 0, index].tolist()
        assert [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] == pytest.approx(box, abs=1e-5)


def test_in_training_positive_places_come_first_and_some_are_dropped(distinct):
    detector = distinct("MODEL.SMCA.TSP.NUM_FEATURES", 60).train()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 300, 3, generator=generator)
    assigned = torch.full((2, 300), -1)
    assigned[0, ::7] = 1
    scores = logits.amax(-1).sigmoid()
    scores[0, ::7] = (scores[0, ::7] + 1) / 2
    best = [sorted(range(300), key=lambda place: -image[place])[:60] for image in scores.tolist()]
    kept = set()
    for seed in range(200):
        torch.manual_seed(seed)
        chosen = detector.choose(logits, assigned).tolist()
        ranks = [
            [own.index(place) for place in found] for own, found in zip(best, chosen, strict=True)
        ]
        assert ranks[0] == ranks[1], "one draw for all images"
        assert len(set(ranks[0])) == len(ranks[0])
        kept.add(len(ranks[0]))
    assert min(kept) == 42 and max(kept) == 59
    assert detector.eval().choose(logits, None).shape == (2, 60)


@torch.no_grad()
def test_images_of_a_batch_are_apart(distinct):
    """Each is what it would be alone with the same padding."""
    detector = distinct()
    sizes = [(96, 128), (72, 200), (41, 55)]
    images = torch.zeros(3, 3, 96, 200, dtype=torch.float64)
    for place, (height, width) in enumerate(sizes):
        images[place, :, :height, :width] = image_of(height, width, seed=place)[0]
    together = detector(images, sizes)
    for place, size in enumerate(sizes):
        alone = detector(images[place : place + 1], [size])
        assert_close(together.logits[:, place], alone.logits[:, 0], atol=1e-10, rtol=1e-10)
        assert_close(together.boxes[:, place], alone.boxes[:, 0], atol=1e-6, rtol=1e-6)


def intersection_over_union(box, other):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    inter = max(width, 0) * max(height, 0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other)]
    return inter / max(sum(areas) - inter, 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.2, 1.0])
def test_results(distinct, threshold):
    """Pairs of places and classes, best first, without boxes beside better ones of the class."""
    detector = distinct("MODEL.SMCA.TSP.NMS_THRESH", threshold)
    detector.heads.box_head.weight.mul_(10)  # boxes that overlap
    predictions = detector(image_of(96, 128), [(96, 128)])
    [found] = detect(predictions, [(192, 256)], max_detections=25)
    pairs = []
    for token, (x0, y0, x1, y1) in enumerate(corners(predictions, 192, 256)):
        for label, logit in enumerate(predictions.logits[0, 0, token].tolist()):
            pairs.append((math.sqrt(1 / (1 + math.exp(-logit))), label, (x0, y0, x1, y1)))
    kept = []
    for score, label, box in sorted(pairs, key=lambda pair: -pair[0]):
        better = [other for _, own, other in kept if own == label]
        if all(intersection_over_union(box, other) <= threshold for other in better):
            kept.append((score, label, box))
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in kept[:25]])
    assert found.labels.tolist() == [label for _, label, _ in kept[:25]]
    for box, (_, _, (x0, y0, x1, y1)) in zip(found.boxes.tolist(), kept, strict=False):
        assert box == pytest.approx([max(x0, 0), max(y0, 0), min(x1, 256), min(y1, 192)], abs=1e-3)
    assert (len(kept) < len(pairs)) == (threshold < 1)


def corners(predictions, height, width):
    cx, cy, w, h = predictions.boxes[0, 0].unbind(-1)
    box = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)
    return (box * box.new_tensor([width, height, width, height])).tolist()


def test_every_trained_parameter_learns(distinct, tiny):
    detector = distinct().train()
    targets = Targets.from_images(
        [torch.tensor([0, 2])],
        [torch.tensor([[10.0, 12.0, 60.0, 70.0], [5.0, 5.0, 225.0, 190.0]])],
        [(192, 256)],
        torch.device("cpu"),
    )
    image = image_of(192, 256)
    losses = build_criterion(tiny())(detector(image, [(192, 256)], targets), targets)
    sum(losses.values()).backward()
    without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    still = [n for n, p in detector.named_parameters() if p.grad is not None and not p.grad.any()]
    assert still == []


def test_one_cell_teaches_no_batch_norm(distinct):
    with pytest.raises(ConfigError, match="one cell of one image.*SOLVER.IMS_PER_BATCH"):
        distinct().train()(image_of(96, 128), [(96, 128)])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.SMCA.IN_FEATURES", ["res4", "res5"]), r"IN_FEATURES.*strides \[16, 32\].*res3"),
        (("MODEL.SMCA.LOSS.CLASSIFICATION", "mal"), "LOSS.CLASSIFICATION is 'mal'.*'focal'"),
        (("MODEL.SMCA.TWO_STAGE", True), "TWO_STAGE is True.*no queries"),
    ],
)
def test_impossible_values_are_named(tiny, opts, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(tiny(*opts))
