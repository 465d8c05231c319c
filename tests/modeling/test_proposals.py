"""Two stages: which tokens are proposed, where queries start, and who learns of it."""

import pytest
import torch
from torch.testing import assert_close

from smca.checkpoints import SafeCheckpointing, load
from smca.errors import ConfigError
from smca.modeling import build_detector
from smca.structures import Predictions, Targets
from smca.training import SetCriterion

TWO_STAGE = ("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.TWO_STAGE", True)
EXACT = (
    *("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0),
    *("MODEL.RESNETS.NORM", "FrozenBN"),
)
SOFTMAX = ("MODEL.SMCA.LOSS.CLASSIFICATION", "softmax")
SIZES = [(64, 96), (50, 80)]


@pytest.fixture
def build(tiny_config):
    """``build(...)``: a detector in float64 without dropout, and its criterion."""

    def made(*options):
        cfg = tiny_config(*TWO_STAGE, *EXACT, *options)
        torch.manual_seed(0)
        detector = build_detector(cfg).double()
        return detector.train(), SetCriterion(**SetCriterion.from_config(cfg))

    return made


def corrected(detector):
    """The same detector with boxes that differ from where they start."""
    for name, parameter in detector.named_parameters():
        if "box_head" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return detector


def images(sizes=SIZES):
    torch.manual_seed(1)
    batch = torch.zeros(len(sizes), 3, 64, 96, dtype=torch.float64)
    for image, (h, w) in zip(batch, sizes, strict=True):
        image[:, :h, :w].normal_()
    return batch


def objects(*counts):
    torch.manual_seed(2)
    corners = [torch.rand(count, 2, 2).double().sort(1).values * 50 for count in counts]
    labels = [torch.randint(3, (count,)) for count in counts]
    return Targets.from_images(labels, [c.flatten(1) for c in corners], SIZES, torch.device("cpu"))


def encoded(detector, sizes=SIZES):
    with torch.no_grad():
        return detector.encoder(detector.neck(detector.features(images(sizes), sizes), sizes))


@pytest.mark.parametrize("options", [(), SOFTMAX], ids=["sigmoid", "softmax"])
def test_the_tokens_with_the_highest_scores_are_proposed(build, options):
    detector, _ = build(*options)
    corrected(detector)
    proposals, memory = detector.decoder.proposals, encoded(detector)
    found, start = proposals(memory)
    assert not start.requires_grad
    assert_close(start.sigmoid(), found.boxes[0].clamp(0.001, 0.999))
    for image, (height, width) in enumerate(SIZES):
        expected, first = [], 0
        for stride, (rows, columns) in zip(memory.strides, memory.shapes, strict=True):
            for row in range(rows):
                for column in range(columns):
                    token = memory.tokens[image, first + row * columns + column]
                    hidden = proposals.norm(proposals.proj(token))
                    logits = proposals.heads.class_head(hidden)
                    scores = logits.softmax(-1)[:-1] if options else logits
                    x, y = (column + 0.5) * stride / width, (row + 0.5) * stride / height
                    cell = torch.tensor([x, y, 0.05 * stride / 8, 0.05 * stride / 8]).double()
                    box = (
                        cell.clamp(0.001, 0.999).logit() + proposals.heads.box_head(hidden)
                    ).sigmoid()
                    inside = row * stride < height and column * stride < width
                    if inside:
                        expected.append((scores.max().item(), logits, box))
            first += rows * columns
        expected.sort(key=lambda token: -token[0])
        assert_close(
            found.logits[0, image], torch.stack([logits for _, logits, _ in expected[:10]])
        )
        assert_close(found.boxes[0, image], torch.stack([box for *_, box in expected[:10]]))


def test_small_maps_have_as_many_proposals(build):
    detector, _ = build("MODEL.SMCA.NUM_QUERIES", 200)
    memory = encoded(detector, SIZES[:1])
    _, start = detector.decoder.proposals(memory)
    _, fewer = build()[0].decoder.proposals(memory)
    tokens = sum(memory.lengths)
    assert 10 < tokens < 200 and start.shape == (1, 200, 4) and start.isfinite().all()
    assert_close(start[:, :10], fewer)
    last = start[:, tokens:]
    assert_close(last, last[:, :1].expand_as(last))
    detections = detector.eval()(images(), SIZES)
    assert detections.boxes.shape == (1, 2, 200, 4) and detections.logits.isfinite().all()


@pytest.mark.parametrize("groups", [1, 3])
def test_queries_start_from_the_proposals(build, groups):
    detector, _ = build("MODEL.SMCA.QUERY_GROUPS", groups)
    predictions = detector(images(), SIZES)
    proposed = predictions.proposals.boxes[0]
    assert predictions.logits.shape[:3] == (2, 2 * groups, 10)
    # New box heads correct nothing.
    assert_close(predictions.boxes, proposed.repeat_interleave(groups, 0).expand(2, -1, -1, -1))
    evaluated = detector.eval()(images(), SIZES)
    assert evaluated.proposals is None
    assert_close(evaluated.boxes[0], proposed)
    assert_close(evaluated.logits[0], predictions.logits[-1, ::groups])


def test_decoder_and_proposals_learn_apart_and_both_teach_the_encoder(build):
    detector, _ = build()
    corrected(detector)
    first = list(detector.decoder.proposals.parameters())
    second = [detector.decoder.contents.weight, *detector.heads.parameters()]
    encoder = list(detector.encoder.parameters())
    predictions = detector(images(), SIZES)

    def learns(predictions, parameters):
        total = predictions.logits.square().sum() + predictions.boxes.square().sum()
        found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in found]

    assert not any(learns(predictions, first)) and all(learns(predictions, second))
    assert all(learns(predictions.proposals, first))
    assert not any(learns(predictions.proposals, second))
    assert all(learns(predictions, encoder)) and all(learns(predictions.proposals, encoder))


@pytest.mark.parametrize("options", [(), SOFTMAX, ("MODEL.SMCA.QUERY_GROUPS", 2)])
@pytest.mark.parametrize("counts", [(2, 4), (0, 0)])
def test_proposals_have_the_losses_of_a_layer(build, options, counts):
    detector, criterion = build(*options)
    predictions, targets = corrected(detector)(images(), SIZES), objects(*counts)
    losses = criterion(predictions, targets)
    proposals = predictions.proposals
    alone = Predictions(logits=proposals.logits, boxes=proposals.boxes, centers=None)
    expected = criterion(alone, targets)
    assert {f"{name}_enc" for name in expected} == {name for name in losses if "_enc" in name}
    for name, value in expected.items():
        assert_close(losses[f"{name}_enc"], value)
    assert losses["loss_class_enc"] > 0 and (losses["loss_l1_enc"] > 0) == (counts != (0, 0))


def test_a_decoder_whose_queries_are_no_boxes_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"TWO_STAGE is True; .* not ConditionalDecoder"):
        build_detector(
            tiny_config(
                "MODEL.SMCA.TWO_STAGE", True, "MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"
            )
        )


def test_another_model_takes_both_class_heads_by_name_and_the_first_queries(build, tmp_path):
    trained, _ = build()
    trained.class_names = ("circle", "rectangle", "triangle")
    SafeCheckpointing(trained, str(tmp_path)).save("trained")
    new, _ = build("MODEL.SMCA.NUM_CLASSES", 2, "MODEL.SMCA.NUM_QUERIES", 4)
    new.class_names = ("triangle", "circle")
    load(new, tmp_path / "trained.pth", strict=False)
    for name in ("heads.class_head.weight", "decoder.proposals.heads.class_head.weight"):
        found, theirs = new.get_parameter(name), trained.get_parameter(name)
        assert torch.equal(found, theirs[[2, 0]])
    assert torch.equal(new.decoder.contents.weight, trained.decoder.contents.weight[:4])
