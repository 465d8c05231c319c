"""Released files give the same boxes and scores after conversion, by the config that is named."""

import argparse
import shlex
from pathlib import Path

import pytest
import torch
import torchvision
from torch.testing import assert_close

import smca
from released_files import Released, convert, matching_configs, read_options, recognise
from smca.checkpoints import load, read_checkpoint
from smca.config import flatten, load_cfg
from smca.errors import CheckpointError
from smca.modeling import detect

ROOT = Path(__file__).parents[2]
# The ids of COCO's 80 classes.
IDS = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70]
IDS += [*range(72, 83), *range(84, 91)]
UNUSED = sorted(set(range(91)) - set(IDS))


@pytest.fixture
def converted(convert_checkpoint, tmp_path):
    """`converted(content)`: for each command that the program prints, the detector it evaluates
    and its config; and what was printed.
    """

    def build(content, *flags):
        output = tmp_path / "out.pth"
        torch.save(content, tmp_path / "in.pth")
        code, printed = convert_checkpoint(*flags, tmp_path / "in.pth", output)
        assert code == 0, printed
        models = []
        for line in printed.splitlines():
            if not line.startswith("python train_net.py --config-file"):
                continue
            config, evaluate, *options = shlex.split(line)[3:]
            assert evaluate == "--eval-only" and options[:2] == ["MODEL.WEIGHTS", str(output)]
            cfg = load_cfg(smca.get_cfg(), config, options)
            detector = smca.build_detector(cfg).eval()
            names = load(detector, output, strict=True)["class_names"]
            assert len(set(names)) == 80 and "N/A" not in names
            by_id = dict(zip(IDS, names, strict=True))
            assert [by_id[i] for i in (1, 13, 44, 90)] == [
                *("person", "stop sign", "bottle", "toothbrush")
            ]
            models.append((detector, cfg))
        return models, printed

    return build


def scores_of(logits, softmax):
    """(N, columns) -> (N, 80)."""
    if not softmax:
        return logits.sigmoid()[:, IDS]
    probabilities = logits.softmax(-1)
    # What the never trained ids have goes to the others.
    return probabilities[:, IDS] / (1 - probabilities[:, UNUSED].sum(-1, keepdim=True))


CASES = {
    "detr": dict(kind="detr", columns=92),
    "detr_dc5": dict(kind="detr", columns=92, dilated=True),
    "detr_focal": dict(kind="detr", columns=91),
    "conditional_detr": dict(kind="conditional_detr", columns=91),
    "up_detr": dict(kind="up_detr", columns=92),
    "smca": dict(kind="smca", columns=91),
    "smca_92": dict(kind="smca", columns=92),
    "smca_depthwise": dict(kind="smca_depthwise", columns=91, kernels=(5,)),
    "smca_depthwise_kernels": dict(kind="smca_depthwise", columns=92, kernels=(3, 7, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_boxes_and_scores_are_those_of_the_original(case, original, converted):
    model = original(**CASES[case])
    dilated = CASES[case].get("dilated", False)
    settings = argparse.Namespace(dilation=dilated, nheads=8, lr=1e-4)
    content = {"model": model.state_dict(), "args": settings, "epoch": 49}
    ((detector, cfg),), printed = converted(content)
    softmax = cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"
    assert softmax == (case in ("detr", "detr_dc5", "up_detr"))
    assert softmax == ("softmax scores are exact" in printed)

    # No side is a multiple of a stride; the second image is padded on both sides in a batch.
    torch.manual_seed(1)
    sizes = [(150, 203), (131, 170)]
    images = [torch.randn(3, *size) for size in sizes]
    # The depthwise convolutions see padding, in the original too.
    for batch in [[0], [1]] if "depthwise" in case else [[0, 1]]:
        padded = torch.zeros(len(batch), 3, *sizes[batch[0]])
        for slot, number in zip(padded, batch, strict=True):
            slot[:, : sizes[number][0], : sizes[number][1]] = images[number]
        batch_sizes = [sizes[number] for number in batch]
        with torch.no_grad():
            predictions = detector(padded, batch_sizes)
        found = detect(predictions, batch_sizes, max_detections=5, softmax=softmax)
        for place, number in enumerate(batch):
            logits, boxes = model(images[number])
            scores = scores_of(logits, softmax)
            ours = predictions.logits[-1, place]
            ours = ours.softmax(-1)[:, :-1] if softmax else ours.sigmoid()
            assert_close(ours, scores, atol=1e-4, rtol=0)
            assert_close(predictions.boxes[-1, place], boxes, atol=1e-4, rtol=0)
            assert_detections(found[place], scores, boxes, sizes[number], softmax)


def assert_detections(found, scores, boxes, size, softmax):
    """The best by score, with boxes in pixels: of all queries and classes, or one a query."""
    candidates = [
        (score, query, label)
        for query, row in enumerate(scores.tolist())
        for label, score in enumerate(row)
        if not softmax or score == max(row)
    ]
    for place, (score, query, label) in enumerate(sorted(candidates, reverse=True)[:5]):
        cx, cy, w, h = boxes[query].tolist()
        corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        corners = torch.tensor(corners) * torch.tensor([size[1], size[0]] * 2)
        assert_close(found.scores[place], torch.tensor(score), atol=1e-4, rtol=0)
        assert found.labels[place] == label
        assert_close(found.boxes[place], corners, atol=1e-4 * max(size), rtol=0)


@pytest.mark.slow
def test_deeper_backbones_and_wrapped_tensors(original, converted):
    """A bare state dict, each name with the prefix of a wrapper, of Conditional DETR-R101."""
    model = original("conditional_detr", columns=91, depth=101)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    ((detector, cfg), (dilated, dilated_cfg)), printed = converted(state)
    assert "does not show whether it was trained with DC5" in printed
    assert cfg.OUTPUT_DIR.endswith("conditional_detr_R101_50ep")
    assert dilated_cfg.OUTPUT_DIR.endswith("conditional_detr_DC5_R101_50ep")
    for name, tensor in dilated.state_dict().items():
        assert_close(tensor, detector.state_dict()[name], atol=0, rtol=0)
    # In float32 rounding alone makes 1e-4 in so deep a network.
    image = torch.randn(3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        predictions = detector.double()(image[None], [(96, 128)])
    torch.set_default_dtype(torch.float64)
    try:
        logits, boxes = model.double()(image)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(predictions.boxes[-1, 0], boxes, atol=1e-6, rtol=0)
    assert_close(predictions.logits[-1, 0].sigmoid(), scores_of(logits, False), atol=1e-6, rtol=0)


def test_the_config_decides_about_the_last_column(original, converted):
    """A DETR with 92 rows that was trained with the focal loss."""
    model = original("detr", columns=92)
    config = str(ROOT / "configs" / "baselines" / "detr_focal_R50_50ep.yaml")
    flags = ("--from", "detr", "--config-file", config)
    ((detector, cfg),), _ = converted({"model": model.state_dict()}, *flags)
    assert_close(detector.heads.class_head.bias, model.class_embed.bias[IDS])
    content = read_checkpoint(cfg.MODEL.WEIGHTS)
    assert content["config_file"] == config
    assert content["options"][:2] == ["MODEL.SMCA.NUM_QUERIES", 11]


@pytest.mark.parametrize(
    ("options", "config", "changes"),
    [
        ({"kind": "detr", "columns": 92}, "baselines/detr_{}R50_500ep", []),
        ({"kind": "detr", "columns": 92, "depth": 101}, "baselines/detr_{}R101_500ep", []),
        ({"kind": "detr", "columns": 91}, "baselines/detr_focal_{}R50_50ep", []),
        (
            {"kind": "conditional_detr", "columns": 91},
            "baselines/conditional_detr_{}R50_50ep",
            [],
        ),
        ({"kind": "up_detr", "columns": 92}, "baselines/up_detr_R50_300ep", []),
        (
            {"kind": "up_detr", "columns": 92, "depth": 101},
            "baselines/up_detr_R50_300ep",
            ["MODEL.RESNETS.DEPTH", 101],
        ),
        ({"kind": "up_detr_pretrained", "columns": 3}, "baselines/up_detr_pretrain_R50", []),
        ({"kind": "smca", "columns": 92}, "smca_single_scale_R50_50ep", []),
        (
            {"kind": "smca", "columns": 92, "depth": 101},
            "smca_single_scale_R50_50ep",
            ["MODEL.RESNETS.DEPTH", 101],
        ),
        (
            {"kind": "smca_depthwise", "columns": 91, "kernels": (7, 9)},
            "smca_depthwise_R50_50ep",
            ["MODEL.SMCA.ENCODER.KERNEL_SIZE", 9],
        ),
    ],
)
def test_published_sizes_need_no_more_than_the_config(published, options, config, changes):
    kind = options["kind"]
    released = published(**options)
    assert recognise(released) == kind
    plain, dc5 = config.format(""), config.format("DC5_")
    assert matching_configs(released, kind) == list(dict.fromkeys([plain, dc5]))
    file = str(ROOT / "configs" / f"{plain}.yaml")
    values = flatten(load_cfg(smca.get_cfg(), file))
    found = read_options(released, kind).items()
    assert [part for key, value in found if values[key] != value for part in (key, value)] == (
        changes
    )
    with torch.device("meta"):
        detector = smca.build_detector(load_cfg(smca.get_cfg(), file, changes))
    model, left_out = convert(released, kind, detector.state_dict())
    assert model.keys() == detector.state_dict().keys() and not left_out
    released.settings.dilation = True
    assert matching_configs(released, kind) == [dc5]


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_resnets(convert_checkpoint, tmp_path, depth):
    torch.manual_seed(0)
    resnet = getattr(torchvision.models, f"resnet{depth}")().eval()
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(resnet.state_dict(), tmp_path / "in.pth")
    code, printed = convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth")
    assert code == 0
    counters = sum(name.endswith("num_batches_tracked") for name in resnet.state_dict())
    assert f"purpose: fc.weight fc.bias and {counters} num_batches_tracked" in printed
    command = shlex.split(printed.splitlines()[-1])
    assert command[2:4] == ["--config-file", "configs/smca_R50_50ep.yaml"]
    assert ("MODEL.RESNETS.DEPTH" in command) == (depth != 50)
    detector = smca.build_detector(load_cfg(smca.get_cfg(), command[3], command[4:])).eval()
    assert "class_names" not in load(detector, tmp_path / "out.pth")
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    resnet, backbone = resnet.double(), detector.backbone.double()
    with torch.no_grad():
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        x = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
        assert_close(backbone(image)["res5"], x)
    extra = resnet.state_dict() | {"layer5.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"left over: layer5\.weight$"):
        released = Released("a.pth", extra, argparse.Namespace())
        convert(released, "torchvision_resnet", detector.state_dict())
