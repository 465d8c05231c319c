"""Starting weights by path, and files that are refused."""

import os
import pickle

import numpy as np
import pytest
import torch
import torchvision

pytest.importorskip("detectron2")

from detectron2.modeling import build_model  # noqa: E402

from smca.checkpoints import CheckpointError  # noqa: E402
from smca.d2.checkpointer import SMCACheckpointer  # noqa: E402
from smca.d2.predictor import Detectron2Host  # noqa: E402

RESNET18 = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "FrozenBN"),
]


@pytest.fixture(scope="module")
def resnet():
    """A torchvision ResNet that is not as it was made, and its map of stride 32."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
        model.eval()
        image = torch.randn(1, 3, 64, 96)
        maps = model.maxpool(model.relu(model.bn1(model.conv1(image))))
        maps = model.layer4(model.layer3(model.layer2(model.layer1(maps))))
    return model.state_dict(), image, maps


def detectron2_zoo(state):
    """As Detectron2's tools/convert-torchvision-to-d2.py writes it."""
    model = {}
    for name, tensor in state.items():
        if "layer" not in name:
            name = "stem." + name
        for t in (1, 2, 3, 4):
            name = name.replace(f"layer{t}", f"res{t + 1}")
        for t in (1, 2, 3):
            name = name.replace(f"bn{t}", f"conv{t}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        model[name] = tensor.numpy()
    return {"model": model, "__author__": "torchvision", "matching_heuristics": True}


@pytest.mark.parametrize("form", ["pkl", "pth"])
@pytest.mark.parametrize("backbone", ["build_smca_resnet_backbone", "build_resnet_backbone"])
def test_pretrained_backbones(d2_config, resnet, tmp_path, form, backbone):
    state, image, expected = resnet
    path = tmp_path / f"R-18.{form}"
    if form == "pkl":
        path.write_bytes(pickle.dumps(detectron2_zoo(state)))
    else:
        torch.save(state, path)
    model = build_model(d2_config(*RESNET18, "MODEL.BACKBONE.NAME", backbone)).eval()
    SMCACheckpointer(model).load(str(path))
    with torch.no_grad():
        found = model.backbone(image)["res5"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["pkl", "pth"])
def test_a_file_that_would_run_code_is_refused(d2_config, tmp_path, form):
    harmful = Harmful()
    harmful.path = str(tmp_path / "harm")
    path = tmp_path / f"model.{form}"
    content = {"model": {"w": np.zeros(1)}, "__author__": harmful}
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match=path.name):
        SMCACheckpointer(build_model(d2_config())).load(str(path))
    assert not os.path.exists(harmful.path)


def test_another_number_of_classes(d2_config, tmp_path, caplog):
    source = build_model(d2_config("MODEL.SMCA.NUM_CLASSES", 7))
    SMCACheckpointer(source, str(tmp_path)).save("other")
    model = build_model(d2_config())
    SMCACheckpointer(model).load(str(tmp_path / "other.pth"))
    assert "class head not loaded" in caplog.text
    torch.testing.assert_close(model.decoder.state_dict(), source.decoder.state_dict())
    checkpointer = SMCACheckpointer(build_model(d2_config()))
    checkpointer.whole = True
    with pytest.raises(CheckpointError, match="MODEL.SMCA.NUM_CLASSES"):
        checkpointer.load(str(tmp_path / "other.pth"))


def test_a_path_that_does_not_exist(d2_config):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        SMCACheckpointer(build_model(d2_config())).load("nowhere.pth")


def test_what_cannot_be_downloaded_is_said(d2_config, tmp_path, monkeypatch):
    """Nobody listens on port 1."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    path = "http://127.0.0.1:1/a.pth"
    checkpointer = SMCACheckpointer(build_model(d2_config()))
    for read in (checkpointer.load, Detectron2Host.local_path):
        with pytest.raises(CheckpointError, match=f"{path} cannot be downloaded .* name the file"):
            read(path)
