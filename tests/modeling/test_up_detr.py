"""UP-DETR: its published sizes, and its pre-training beside a reference that masks attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from exact import exact_detector
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close
from torchvision.ops import box_convert, generalized_box_iou

from smca.errors import ConfigError
from smca.modeling import build_detector
from smca.structures import Targets

SIZES = [(64, 96), (50, 80)]


@pytest.fixture
def tiny(tiny_config):
    """``tiny("KEY", value, ...)``: the config of a tiny pre-training, with 4 patches."""
    return lambda *opts: tiny_config(
        *("MODEL.SMCA.DECODER.NAME", "UPDETRDecoder", "MODEL.SMCA.PRE_NORM", True),
        *("MODEL.SMCA.NUM_CLASSES", 2, "MODEL.SMCA.LOSS.CLASSIFICATION", "softmax"),
        *("MODEL.SMCA.LOSS.CLASS_WEIGHT", 1.0, "MODEL.SMCA.MATCHER.CLASS_COST", 1.0),
        *("MODEL.SMCA.NUM_QUERIES", 12, "MODEL.SMCA.UP_DETR.NUM_PATCHES", 4),
        *("MODEL.SMCA.UP_DETR.FEATURE_DIM", 64, "MODEL.SMCA.UP_DETR.PATCH_DROPOUT", 0.0),
        *("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0),
        *("MODEL.RESNETS.NORM", "FrozenBN"),
        *opts,
    )


def batch(patches=4):
    torch.manual_seed(1)
    images = torch.zeros(2, 3, 64, 96, dtype=torch.float64)
    for image, (h, w) in zip(images, SIZES, strict=True):
        image[:, :h, :w].normal_()
    centers, sides = torch.rand(2, 2, patches, 2, dtype=torch.float64) * 0.4 + 0.1
    return images, Targets(
        labels=torch.ones(2, patches, dtype=torch.int64),
        boxes=torch.cat((centers + 0.2, sides), dim=-1),
        counts=(patches, patches),
        patches=torch.randn(2, patches, 3, 48, 48, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("name", "opts", "trained", "all_of_them"),
    [
        ("up_detr_R50_300ep", ("MODEL.SMCA.NUM_CLASSES", 91), 41_302_880, 41_525_280),
        ("up_detr_pretrain_R50", (), 19_164_167, 42_619_079),
    ],
)
def test_published_sizes(config, name, opts, trained, all_of_them):
    with torch.device("meta"):
        detector = build_detector(config(f"baselines/{name}", *opts))
    parameters = [(p.numel(), p.requires_grad) for p in detector.parameters()]
    # A frozen batch norm has no parameters here.
    assert sum(number for number, _ in parameters) == all_of_them
    assert sum(number for number, learns in parameters if learns) == trained


def attend(module, query, key, value, mask=0.0):
    """One image's attention (N, C), head by head."""
    query, key, value = module.q_proj(query), module.k_proj(key), module.v_proj(value)
    heads = []
    parts = (x.chunk(module.num_heads, dim=-1) for x in (query, key, value))
    for q, k, v in zip(*parts, strict=True):
        heads.append((q @ k.T / math.sqrt(q.shape[-1]) + mask).softmax(-1) @ v)
    return module.out_proj(torch.cat(heads, dim=-1))


def reference(detector, image, patches):
    """The outputs (layers, N, C) for one image without padding, and its patches' features."""
    decoder = detector.decoder
    number = len(decoder.query_embed.weight) // decoder.num_patches
    size = [tuple(image.shape[1:])]
    memory = detector.encoder(detector.neck(detector.features(image[None], size), size))
    maps = [detector.backbone(patch[None])["res5"] for patch in patches]
    features = torch.stack([last.mean((2, 3))[0] for last in maps])
    position = torch.stack(
        [
            decoder.query_embed.weight[query] + decoder.patch2query(features[query // number])
            for query in range(number * len(patches))
        ]
    )
    group = torch.arange(len(position)) // number
    mask = torch.where(group[:, None] == group, 0.0, -torch.inf)
    x, outputs = torch.zeros_like(position), []
    tokens, keys = memory.tokens[0], memory.keys()[0]
    for layer in decoder.layers:
        y = layer.norm1(x)
        x = x + attend(layer.self_attention, y + position, y + position, y, mask)
        x = x + attend(layer.co_attention, layer.norm2(x) + position, keys, tokens)
        x = x + layer.ffn(layer.norm3(x))
        outputs.append(decoder.norm(x))
    return torch.stack(outputs), features


@pytest.mark.parametrize("patches", [1, 2, 3, 4, 6, 12])
def test_queries_of_a_patch_see_each_other_alone(tiny, patches):
    """For every number of patches, also those with fewer queries a patch than patches."""
    detector, _ = exact_detector(tiny("MODEL.SMCA.UP_DETR.NUM_PATCHES", patches))
    images, targets = batch(patches)
    predictions = detector(images, SIZES, targets)
    known, predicted = predictions.features
    for number, (h, w) in enumerate(SIZES):
        hidden, features = reference(detector, images[number, :, :h, :w], targets.patches[number])
        assert_close(known[number], features)
        assert_close(predictions.logits[:, number], detector.heads.class_head(hidden))
        assert_close(predictions.boxes[:, number], detector.heads.box_head(hidden).sigmoid())
        assert_close(predicted[:, number], detector.decoder.feature_align(hidden))


def test_evaluation_takes_fewer_patches(tiny):
    detector, _ = exact_detector(tiny())
    images, targets = batch(3)
    predictions = detector.eval()(images, SIZES, targets)
    assert predictions.logits.shape == (1, 2, 9, 3)
    hidden, _ = reference(detector, images[0], targets.patches[0])
    assert_close(predictions.logits[0, 0], detector.heads.class_head(hidden[-1]))


def test_a_part_of_the_queries_does_not_see_its_patch_in_training(tiny):
    options = "MODEL.SMCA.NUM_QUERIES", 4000, "MODEL.SMCA.UP_DETR.PATCH_DROPOUT", 0.25
    decoder = exact_detector(tiny(*options))[0].decoder
    features = torch.randn(2, 4, 64, dtype=torch.float64)
    own = decoder.query_embed.weight
    patch = decoder.patch2query(features).repeat_interleave(1000, dim=1)
    embeddings = decoder.embeddings(features)
    dropped = (embeddings == own).all(-1)
    assert torch.equal(embeddings[~dropped], (own + patch)[~dropped])
    assert 0.24 < dropped.double().mean() < 0.26 and not dropped[0].equal(dropped[1])
    assert torch.equal(decoder.eval().embeddings(features), own + patch)


def test_embeddings_change_places_in_training(tiny):
    decoder = exact_detector(tiny("MODEL.SMCA.UP_DETR.SHUFFLE", True))[0].decoder
    features = torch.zeros(1, 4, 64, dtype=torch.float64)
    patch = decoder.patch2query.bias
    rows = (decoder.embeddings(features)[0] - patch).detach()
    own = decoder.query_embed.weight.detach()
    order = [int((own - row).norm(dim=1).argmin()) for row in rows]
    assert sorted(order) == list(range(12)) != order
    assert_close(rows, own[order])
    assert torch.equal(decoder.eval().embeddings(features)[0], own + patch)


def test_losses_match_any_query_with_any_patch(tiny):
    """Cross-entropy, L1, GIoU and the features' distance, of each layer, written out."""
    detector, criterion = exact_detector(tiny())
    images, targets = batch()
    predictions = detector(images, SIZES, targets)
    losses = criterion(predictions, targets)
    known, predicted = predictions.features
    assert not known.requires_grad
    for layer in range(2):
        sums = dict.fromkeys(("class", "weight", "l1", "giou", "feature"), 0.0)
        for image in range(2):
            logits, boxes = predictions.logits[layer, image], predictions.boxes[layer, image]
            wanted = targets.boxes[image]
            giou = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes, wanted)))
            cost = -logits.softmax(-1)[:, 1:2] + 5 * torch.cdist(boxes, wanted, p=1) - 2 * giou
            queries, patches = linear_sum_assignment(cost.detach())
            classes = torch.full((12,), 2)
            classes[queries] = 1
            weight = torch.where(classes == 2, 0.1, 1.0)
            sums["class"] += (weight * F.cross_entropy(logits, classes, reduction="none")).sum()
            sums["weight"] += weight.sum()
            sums["l1"] += (boxes[queries] - wanted[patches]).abs().sum()
            sums["giou"] += (1 - giou[queries, patches]).sum()
            f, g = predicted[layer, image, queries], known[image, patches]
            f, g = f / f.norm(dim=1, keepdim=True), g / g.norm(dim=1, keepdim=True)
            sums["feature"] += ((f - g) ** 2).sum()
        suffix = "_0" if layer == 0 else ""
        assert_close(losses[f"loss_class{suffix}"], sums["class"] / sums["weight"])
        assert_close(losses[f"loss_l1{suffix}"], 5 * sums["l1"] / 8)
        assert_close(losses[f"loss_giou{suffix}"], 2 * sums["giou"] / 8)
        assert_close(losses[f"loss_feature{suffix}"], sums["feature"] / 8)
    assert len(losses) == 8


def test_the_last_layer_alone_learns_features_without_auxiliary_losses(tiny):
    detector, criterion = exact_detector(tiny("MODEL.SMCA.LOSS.FEATURE_WEIGHT", 3.0))
    images, targets = batch()
    predictions = detector(images, SIZES, targets)
    every = criterion(predictions, targets)
    criterion.auxiliary = False
    last = criterion(predictions, targets)
    assert last.keys() == {"loss_class", "loss_l1", "loss_giou", "loss_feature"}
    for name, loss in last.items():
        assert_close(loss, every[name])
    criterion.feature_weight = 1.0
    assert_close(criterion(predictions, targets)["loss_feature"], last["loss_feature"] / 3)


def test_all_that_is_trained_learns(tiny):
    detector, criterion = exact_detector(tiny("MODEL.BACKBONE.FREEZE_AT", 5))
    images, targets = batch()
    sum(criterion(detector(images, SIZES, targets), targets).values()).backward()
    trained = {n: p.grad for n, p in detector.named_parameters() if p.requires_grad}
    assert not any(name.startswith("backbone.") for name in trained)
    # Before it has learned, the first layer norms and attends to zeros: a gradient of 0, not None.
    first = "decoder.layers.0.self_attention.", "decoder.layers.0.norm"
    assert all(g.any() for name, g in trained.items() if not name.startswith(first))
    assert all(g is not None for g in trained.values())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.SMCA.NUM_QUERIES", 10), r"NUM_QUERIES is 10; it must be a multiple of .* \(4\)"),
        (("MODEL.SMCA.UP_DETR.FEATURE_DIM", 512), r"FEATURE_DIM is 512; it must be 64.*'res5'"),
        (("MODEL.SMCA.QUERY_GROUPS", 2), "QUERY_GROUPS is 2; it must be 1 with .*UPDETRDecoder"),
        (("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder"), "PRE_NORM is True; DeformableEncoder"),
        (("MODEL.SMCA.DECODER.NAME", "SMCADecoder"), "PRE_NORM is True; SMCADecoder does not"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, opts, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(tiny(*opts))


def test_it_detects_nothing_without_patches(tiny):
    with pytest.raises(ConfigError, match="finds patches, not objects; fine-tune"):
        build_detector(tiny()).eval()(torch.zeros(1, 3, 64, 96), [(64, 96)])
