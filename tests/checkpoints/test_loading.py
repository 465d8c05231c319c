"""Tensors of a checkpoint fit the model, or are refused by name."""

import pytest
import torch
from torch.testing import assert_close
from weights_server import write_zoo_resnet

from smca.checkpoints import load, read_checkpoint, write_checkpoint
from smca.errors import CheckpointError
from smca.modeling import build_detector


def test_backbone_weights_load_into_a_detector(tmp_path, config, caplog):
    write_zoo_resnet(tmp_path / "R-18.pkl")
    options = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    detector = build_detector(config("smca_R50_50ep", *options))
    weight = detector.neck.projections[0].weight.clone()
    load(detector, tmp_path / "R-18.pkl")
    state = read_checkpoint(tmp_path / "R-18.pth")["model"]
    own = detector.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        assert_close(own[name], tensor)
    assert_close(detector.neck.projections[0].weight, weight)
    with pytest.raises(CheckpointError, match=r"R-18\.pkl holds a backbone alone.*a trained"):
        load(detector, tmp_path / "R-18.pkl", strict=True)


def test_another_backbone_is_refused(tmp_path, config):
    write_zoo_resnet(tmp_path / "R-34.pkl", depth=34)
    options = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    detector = build_detector(config("smca_R50_50ep", *options))
    with pytest.raises(CheckpointError, match=r"MODEL\.RESNETS\.DEPTH.*res2\.2"):
        load(detector, tmp_path / "R-34.pkl")


def test_a_checkpoint_comes_back(tmp_path, detector, tiny_config):
    write_checkpoint({"model": detector.state_dict(), "iteration": 7}, tmp_path / "a.pth")
    torch.manual_seed(1)
    other = build_detector(tiny_config())
    extra = load(other, tmp_path / "a.pth", strict=True)
    assert extra == {"iteration": 7}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pth"]
    for name, tensor in detector.state_dict().items():
        assert_close(other.state_dict()[name], tensor, atol=0, rtol=0)


def test_another_number_of_classes(tmp_path, detector, tiny_config, caplog):
    write_checkpoint({"model": detector.state_dict()}, tmp_path / "three.pth")
    other = build_detector(tiny_config("MODEL.SMCA.NUM_CLASSES", 5))
    with pytest.raises(CheckpointError, match=r"NUM_CLASSES.*heads\.class_head\.weight"):
        load(other, tmp_path / "three.pth", strict=True)
    head = other.heads.class_head.weight.clone()
    load(other, tmp_path / "three.pth")
    assert "class head" in caplog.text
    assert_close(other.heads.class_head.weight, head)
    assert_close(other.decoder.query_embed.weight, detector.decoder.query_embed.weight)


def test_another_model_is_refused_with_its_tensors(tmp_path, detector, tiny_config):
    write_checkpoint({"model": detector.state_dict()}, tmp_path / "a.pth")
    wider = build_detector(tiny_config("MODEL.SMCA.DIM_FEEDFORWARD", 64))
    with pytest.raises(CheckpointError, match=r"a\.pth.*encoder\.blocks\.0\.ffn\.0\.weight"):
        load(wider, tmp_path / "a.pth")
    deeper = build_detector(tiny_config("MODEL.SMCA.DECODER.NUM_LAYERS", 3))
    with pytest.raises(CheckpointError, match=r"lacks decoder\.layers\.2"):
        load(deeper, tmp_path / "a.pth", strict=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of quantised tensors
def test_quantised_weights_are_refused(tmp_path, detector):
    model = {
        name: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
        for name, tensor in detector.state_dict().items()
        if tensor.is_floating_point()
    }
    torch.save({"model": model}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth has whole numbers for .* quantised"):
        load(detector, tmp_path / "a.pth")


@pytest.mark.parametrize("type", [torch.float64, torch.float16, torch.bfloat16, torch.int8])
def test_weights_of_other_types_are_rounded_or_refused(tmp_path, detector, tiny_config, type):
    model = {name: tensor.to(type) for name, tensor in detector.state_dict().items()}
    write_checkpoint({"model": model}, tmp_path / "a.pth")
    if not type.is_floating_point:
        with pytest.raises(CheckpointError, match=r"a\.pth has whole numbers for backbone\.stem"):
            load(detector, tmp_path / "a.pth")
        return
    found = build_detector(tiny_config())
    load(found, tmp_path / "a.pth")
    for name, tensor in found.state_dict().items():
        assert_close(tensor, model[name].to(tensor.dtype), rtol=0, atol=0)
