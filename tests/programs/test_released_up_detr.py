"""UP-DETR's released files: a pre-trained one starts fine-tuning, a fine-tuned one is no DETR."""

import argparse
import shlex

import pytest
import torch
from released_reference import Settings
from torch.testing import assert_close

import smca
from released_files import convert, recognise
from smca.checkpoints import load, read_checkpoint
from smca.config import load_cfg
from smca.errors import CheckpointError

SETTINGS = argparse.Namespace(num_patches=11, nheads=8, dilation=False, pre_norm=True, lr=1e-4)


def build(config, options):
    return smca.build_detector(load_cfg(smca.get_cfg(), config, options)).eval()


@pytest.fixture
def converted(convert_checkpoint, tmp_path):
    """`converted(content)`: the file after conversion, and the words of the printed command."""

    def run(content):
        torch.save(content, tmp_path / "in.pth")
        code, printed = convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth")
        assert code == 0, printed
        return tmp_path / "out.pth", shlex.split(printed.splitlines()[-1])

    return run


@pytest.mark.parametrize(("queries", "settings"), [(11, SETTINGS), (20, None)])
def test_all_of_a_pretrained_file_is_used(monkeypatch, original, converted, queries, settings):
    monkeypatch.setattr(Settings, "queries", queries)
    model = original("up_detr_pretrained", columns=3)
    file, command = converted({"model": model.state_dict(), "args": settings, "epoch": 59})
    content = read_checkpoint(file)
    assert "class_names" not in content
    theirs, ours = model.state_dict().values(), content["model"].values()
    assert sum(t.numel() for t in theirs) == sum(t.numel() for t in ours)
    detector = build(content["config_file"], content["options"])
    load(detector, file, strict=True)
    assert detector.decoder.num_patches == (11 if settings else 10)
    for mine, original_part in (
        (detector.decoder.patch2query, model.patch2query),
        (detector.decoder.feature_align[0], model.feature_align.layers[0]),
        (detector.decoder.feature_align[2], model.feature_align.layers[1]),
        (detector.heads.class_head, model.class_embed),
    ):
        assert_close(mine.state_dict(), dict(original_part.state_dict()), atol=0, rtol=0)
    config = "configs/baselines/up_detr_R50_300ep.yaml"
    start = ["python", "train_net.py", "--config-file", config, "MODEL.WEIGHTS", str(file)]
    assert command[:6] == start and "--eval-only" not in command


def test_fine_tuning_starts_with_a_new_class_head(original, converted, caplog):
    """With two classes it has the shape of the head that tells patches from none."""
    model = original("up_detr_pretrained", columns=3)
    file, command = converted({"model": model.state_dict(), "args": SETTINGS})
    detector = build(command[3], [*command[4:], "MODEL.SMCA.NUM_CLASSES", 2])
    detector.class_names = ("cat", "dog")
    head = {name: t.clone() for name, t in detector.heads.class_head.state_dict().items()}
    assert head["weight"].shape == model.class_embed.weight.shape
    with pytest.raises(CheckpointError, match=r"out\.pth is pre-trained to find patches"):
        load(detector, file, strict=True)
    caplog.clear()
    with caplog.at_level("INFO"):
        load(detector, file)
    (line,) = caplog.messages
    assert "patch2query and feature_align are left out, the class head starts anew" in line
    assert_close(dict(detector.heads.class_head.state_dict()), head, atol=0, rtol=0)
    # The boxes depend on all other tensors.
    image = torch.randn(3, 96, 128)
    with torch.no_grad():
        boxes = detector(image[None], [(96, 128)]).boxes[-1, 0]
    assert_close(boxes, model(image)[1], atol=1e-4, rtol=0)


def test_bare_tensors_with_a_resnet_101(published, converted, caplog):
    released = published("up_detr_pretrained", 3, depth=101)
    file, command = converted(released.tensors)
    assert command[6:] == ["MODEL.RESNETS.DEPTH", "101"]
    with torch.device("meta"):
        detector = build(command[3], command[4:])
    with caplog.at_level("INFO"):
        load(detector, file)
    (line,) = caplog.messages
    assert "the class head starts anew" in line


def test_norms_after_the_sums_are_plain_detr(published, config):
    with torch.device("meta"):
        detr = smca.build_detector(config("baselines/detr_R50_500ep")).state_dict()
        pretrain = smca.build_detector(config("baselines/up_detr_pretrain_R50")).state_dict()
    released = published("up_detr", 92)
    with pytest.raises(CheckpointError, match=r"left over: transformer\.encoder\.norm\.weight"):
        convert(released, "detr", detr)
    for name in ("weight", "bias"):
        del released.tensors[f"transformer.encoder.norm.{name}"]
    assert recognise(released) == "detr"
    assert convert(released, "detr", detr)[0].keys() == detr.keys()
    # Pre-training has no such model.
    released = published("up_detr_pretrained", 3)
    del released.tensors["transformer.encoder.norm.weight"]
    with pytest.raises(CheckpointError, match=r"pre-trained UP-DETR .*missing: encoder\.norm\.we"):
        convert(released, recognise(released), pretrain)
