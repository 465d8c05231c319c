"""Denoising: what is noised by how much, what sees what, and what it teaches."""

from dataclasses import replace

import pytest
import torch
from exact import exact_detector
from operations import Operations
from torch.testing import assert_close

from smca.checkpoints import SafeCheckpointing, load
from smca.errors import ConfigError
from smca.modeling import build_detector
from smca.modeling.denoising import Denoising
from smca.structures import Targets

SIZES = [(64, 96), (50, 96), (64, 80)]
ANCHORED = ("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder")
EXACT = ("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0)
DENOISING = "MODEL.SMCA.DENOISING"
KINDS = {
    "classic": (f"{DENOISING}.KIND", "classic", f"{DENOISING}.SETS", 2),
    "contrastive": (f"{DENOISING}.KIND", "contrastive", f"{DENOISING}.NUMBER", 9),
}


@pytest.fixture
def build(tiny_config):
    """``build(kind, ...)``: a detector in float64 without dropout, and its criterion."""

    def made(kind, *options):
        chosen = (f"{DENOISING}.ENABLED", True, *KINDS[kind]) if kind else ()
        return exact_detector(tiny_config(*ANCHORED, *EXACT, *chosen, *options))

    return made


def padded_images():
    torch.manual_seed(1)
    images = torch.zeros(3, 3, 64, 96, dtype=torch.float64)
    for image, (h, w) in zip(images, SIZES, strict=True):
        image[:, :h, :w].normal_()
    return images


def objects(*counts):
    torch.manual_seed(2)
    corners = [torch.rand(count, 2, 2).double().sort(1).values * 50 for count in counts]
    labels = [torch.randint(3, (count,)) for count in counts]
    return Targets.from_images(labels, [c.flatten(1) for c in corners], SIZES, torch.device("cpu"))


def many_objects(count=400):
    """Objects of one size in the middle of one image."""
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.1], dtype=torch.float64).expand(1, count, 4)
    return Targets(torch.zeros(1, count, dtype=torch.int64), boxes, (count,))


def corners(boxes):
    return torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), -1)


def test_without_noise_the_first_boxes_are_the_objects():
    denoising = Denoising(num_classes=3, dim=4, kind="classic", label_noise=0.0, box_noise=0.0)
    targets = objects(2, 0, 4)
    noised = denoising(targets)
    assert len(noised) == 5 * 4 and noised.sets == 5 and len(noised.labels) == 5 * 6
    starts = noised.reference[noised.image, noised.query].sigmoid()
    assert_close(starts, noised.boxes.clamp(0.001, 0.999))
    content = noised.content[noised.image, noised.query]
    assert torch.equal(content, denoising.label_embed.weight[noised.labels])
    for numbers, image in ((targets.labels, noised.labels), (targets.boxes, noised.boxes)):
        expected = [
            numbers[b, : targets.counts[b]].repeat(5, *[1] * (numbers.dim() - 2)) for b in (0, 2)
        ]
        assert_close(image, torch.cat(expected))
    assert noised.idle.tolist() == [[False] * 2 + [True] * 2, [True] * 4, [False] * 4]


def test_classic_noise_moves_centres_and_stretches_sides():
    denoising = Denoising(num_classes=5, dim=4, kind="classic", label_noise=0.2, box_noise=0.4)
    noised = denoising(many_objects())
    found = noised.reference.sigmoid()
    move = (found[..., :2] - 0.5) / torch.tensor([0.1, 0.05])
    stretch = found[..., 2:] / torch.tensor([0.2, 0.1]) - 1
    for noise in (move, stretch):  # uniform between -0.4 and 0.4
        assert noise.abs().max() <= 0.4 and noise.abs().max() > 0.39
        assert abs(noise.mean()) < 0.02 and abs(noise.abs().mean() - 0.2) < 0.01
    other = noised.content.ne(denoising.label_embed.weight[0]).any(-1).double().mean()
    assert abs(other - 0.2 * 4 / 5) < 0.03  # a drawn label may be the same


def test_contrastive_noise_moves_corners_and_negatives_farther():
    denoising = Denoising(num_classes=5, dim=4, number=1000)
    targets = many_objects()
    noised = denoising(targets)
    assert noised.sets == 2 and len(noised) == 2 * 2 * 400 and noised.idle is None
    assert noised.query.tolist() == [*range(400), *range(800, 1200)]
    found = corners(noised.reference.sigmoid()).unflatten(1, (2, 2, 400))
    halves = torch.tensor([0.1, 0.05, 0.1, 0.05], dtype=torch.float64)
    move = (found - corners(targets.boxes)[:, :1, None, None]) / halves
    near, far = move[:, :, 0].abs(), move[:, :, 1].abs()
    assert near.max() <= 0.4 and abs(near.mean() - 0.2) < 0.01
    assert far.min() >= 0.4 - 1e-9 and far.max() <= 0.8 and abs(far.mean() - 0.6) < 0.01
    assert abs(move.sign().mean()) < 0.05
    other = noised.content.ne(denoising.label_embed.weight[0]).any(-1).double().mean()
    assert abs(other - 0.25 * 4 / 5) < 0.03


@pytest.mark.parametrize(("most", "sets"), [(1, 9), (4, 2), (5, 1), (30, 1)])
def test_contrastive_sets_hold_a_number_of_objects(most, sets):
    denoising = Denoising(num_classes=3, dim=4, number=9)
    assert denoising(objects(most, 0, 1)).sets == sets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 3])
def test_matching_queries_and_noised_ones_know_nothing_of_each_other(build, kind, groups):
    detector, _ = build(kind, "MODEL.SMCA.QUERY_GROUPS", groups)
    images, targets = padded_images(), objects(2, 0, 4)
    with_noise = detector(images, SIZES, targets)
    without = detector(images, SIZES)
    assert without.noised is None
    assert_close(with_noise.logits, without.logits)
    assert_close(with_noise.boxes, without.boxes)
    embed, anchors = detector.decoder.denoising.label_embed.weight, detector.decoder.anchors.weight

    def gradient(predictions, parameter):
        total = predictions.logits.square().sum() + predictions.boxes.square().sum()
        return torch.autograd.grad(total, parameter, retain_graph=True, allow_unused=True)[0]

    from_matching = gradient(with_noise, embed)
    assert from_matching is None or from_matching.eq(0).all()
    noised = with_noise.noised[1]
    assert gradient(noised, anchors).eq(0).all() and gradient(noised, embed).ne(0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_sets_know_nothing_of_each_other_and_nobody_of_idle_queries(build, kind, monkeypatch):
    detector, _ = build(kind)
    images, targets = padded_images(), objects(2, 0, 4)
    drawn = detector.decoder.denoising(targets)
    content = drawn.content.detach().requires_grad_()
    drawn = replace(drawn, content=content)
    monkeypatch.setattr(detector.decoder.denoising, "forward", lambda targets: drawn)
    _, found = detector(images, SIZES, targets).noised
    width = len(drawn) // drawn.sets
    (gradient,) = torch.autograd.grad(found.logits[:, :, :width].square().sum(), content)
    assert drawn.sets == 2 and gradient[:, width:].eq(0).all()
    working = ~drawn.idle
    assert gradient[:, :width][working].ne(0).any(-1).all()
    # What works reads nothing of what is idle.
    expected = found.logits[:, :, :width][:, working]
    (gradient,) = torch.autograd.grad(
        detector(images, SIZES, targets).noised[1].logits[:, :, :width][:, working].sum(), content
    )
    assert gradient[:, :width][drawn.idle].eq(0).all() and expected.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_that_of_a_model_without_it(build, kind):
    detector, _ = build(kind)
    plain, _ = build(None)
    state = detector.state_dict()
    del state["decoder.denoising.label_embed.weight"]
    plain.load_state_dict(state)
    with torch.no_grad():
        found = detector.eval()(padded_images(), SIZES, objects(2, 0, 4))
        expected = plain.eval()(padded_images(), SIZES)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes, expected.boxes)
    assert found.noised is None


def focal(x, wanted):
    p = x.sigmoid()
    if wanted:
        return -0.25 * (1 - p) ** 2 * p.log()
    return -0.75 * p**2 * (1 - p).log()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_sums_over_queries(build, kind):
    detector, criterion = build(kind)
    targets = objects(2, 0, 4)
    predictions = detector(padded_images(), SIZES, targets)
    noised, found = predictions.noised
    losses = criterion(predictions, targets)
    plain = criterion(detector(padded_images(), SIZES), targets)
    assert_close({name: losses[name] for name in plain}, dict(plain))
    parts = 1 if kind == "classic" else 2
    for layer, suffix in enumerate(("_0", "")):
        class_loss = l1 = 0.0
        positives = 0
        for image, count in enumerate(targets.counts):
            for number in range(noised.sets * parts):
                for index in range(count):
                    query = number * 4 + index
                    label = targets.labels[image, index] if number % parts == 0 else None
                    for k, x in enumerate(found.logits[layer, image, query]):
                        class_loss += focal(x, k == label)
                    if label is not None:
                        positives += 1
                        box = found.boxes[layer, image, query] - targets.boxes[image, index]
                        l1 += box.abs().sum()
        assert positives == noised.sets * 6
        assert_close(losses[f"loss_class_dn{suffix}"], 2 * class_loss / positives)
        assert_close(losses[f"loss_l1_dn{suffix}"], 5 * l1 / positives)
        assert losses[f"loss_giou_dn{suffix}"] > 0


@pytest.mark.parametrize("classification", ["focal", "softmax", "mal", "ia_bce"])
@pytest.mark.parametrize("kind", KINDS)
def test_idle_queries_do_not_count(build, kind, classification):
    detector, criterion = build(kind, "MODEL.SMCA.LOSS.CLASSIFICATION", classification)
    targets = objects(2, 0, 4)
    predictions = detector(padded_images(), SIZES, targets)
    noised, found = predictions.noised
    logits = found.logits.detach().clone()
    logits[:, noised.idle.repeat(1, noised.sets)] = 50.0
    before = criterion(predictions, targets)
    changed = replace(predictions, noised=(noised, replace(found, logits=logits)))
    after = criterion(changed, targets)
    assert_close(dict(before), dict(after))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_objects_teaches_nothing_and_joins_the_graph(build, kind):
    detector, criterion = build(kind)
    targets = objects(0, 0, 0)
    losses = criterion(detector(padded_images(), SIZES, targets), targets)
    with_objects = criterion(detector(padded_images(), SIZES, objects(1, 0, 2)), objects(1, 0, 2))
    assert losses.keys() == with_objects.keys()
    assert all(losses[name] == 0 for name in losses if "_dn" in name)
    sum(losses.values()).backward()
    assert detector.decoder.denoising.label_embed.weight.grad.eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_attention_stays_one_fused_call_without_a_mask(build, kind):
    detector, _ = build(kind)
    with Operations() as operations:
        predictions = detector(padded_images(), SIZES, objects(2, 0, 40))
        sum(part.logits.sum() for part in (predictions, predictions.noised[1])).backward()
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    assert operations.attention == [fused, f"{fused}_backward"]
    calls = []
    for layer in detector.decoder.layers:
        layer.co_attention.register_forward_hook(lambda module, got, out: calls.append(out.shape))
    detector(padded_images(), SIZES, objects(2, 0, 40))
    queries = 10 + len(predictions.noised[0])
    assert calls == [(3, queries, 32)] * 2


def test_a_decoder_whose_queries_are_no_boxes_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"DENOISING\.ENABLED is True; .* not SMCADecoder"):
        build_detector(tiny_config(f"{DENOISING}.ENABLED", True))


def test_a_model_with_other_classes_takes_the_vectors_of_its_labels_by_name(build, tmp_path):
    trained, _ = build("classic")
    trained.class_names = ("circle", "rectangle", "triangle")
    SafeCheckpointing(trained, str(tmp_path)).save("trained")
    new, _ = build("classic", "MODEL.SMCA.NUM_CLASSES", 4)
    new.class_names = ("star", "triangle", "cross", "circle")
    own = new.decoder.denoising.label_embed.weight.detach().clone()
    load(new, tmp_path / "trained.pth", strict=False)
    found, theirs = (model.decoder.denoising.label_embed.weight for model in (new, trained))
    assert torch.equal(found[[1, 3]], theirs[[2, 0]]) and torch.equal(found[[0, 2]], own[[0, 2]])
