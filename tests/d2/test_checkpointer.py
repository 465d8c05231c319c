"""Starting weights by path, and files that are refused."""

import os
import pickle

import numpy as np
import pytest
import torch
import torchvision
from weights_server import zoo_resnet

pytest.importorskip("detectron2")

from detectron2.modeling import build_model  # noqa: E402
from detectron2.utils.file_io import PathHandler, PathManager  # noqa: E402

from smca.checkpoints import fetch  # noqa: E402
from smca.checkpoints.fetching import local_file  # noqa: E402
from smca.d2.checkpointer import SMCACheckpointer  # noqa: E402
from smca.d2.predictor import Detectron2Host  # noqa: E402
from smca.errors import CheckpointError

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


@pytest.mark.parametrize("form", ["pkl", "pth"])
@pytest.mark.parametrize("backbone", ["build_smca_resnet_backbone", "build_resnet_backbone"])
def test_pretrained_backbones(d2_config, resnet, tmp_path, form, backbone):
    state, image, expected = resnet
    path = tmp_path / f"R-18.{form}"
    if form == "pkl":
        path.write_bytes(pickle.dumps(zoo_resnet(state)))
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
    with pytest.raises(CheckpointError, match="MODEL.SMCA.NUM_CLASSES"):
        SMCACheckpointer(model, strict=True).load(str(tmp_path / "other.pth"))


def test_a_path_that_does_not_exist(d2_config):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        SMCACheckpointer(build_model(d2_config())).load("nowhere.pth")


def test_the_cache_is_detectron2s_own(d2_config, tmp_path, monkeypatch):
    """What its other projects have fetched is there, and the other way round."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    address = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    place = tmp_path / "detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    place.parent.mkdir(parents=True)
    place.write_bytes(pickle.dumps({"model": {"stem.conv1.weight": np.ones(1)}}))
    assert PathManager.get_local_path(address) == fetch(address) == str(place)


def test_addresses_of_detectron2s_other_handlers(d2_config, tmp_path):
    """Such as a cluster's own, which a project has registered."""

    class Cluster(PathHandler):
        def _get_supported_prefixes(self):
            return ["cluster://"]

        def _get_local_path(self, path, **_):
            return str(tmp_path / path.removeprefix("cluster://"))

    PathManager.register_handler(Cluster(), allow_override=True)
    SMCACheckpointer(build_model(d2_config()), str(tmp_path)).save("a")
    SMCACheckpointer(build_model(d2_config())).load("cluster://a.pth")
    found = local_file("cluster://a.pth", Detectron2Host.path_manager)  # as the predictor does
    assert found == str(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="manifold://a.pth cannot be fetched"):
        SMCACheckpointer(build_model(d2_config())).load("manifold://a.pth")
