"""The model zoo: names, files, configs and models."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import smca
from smca import model_zoo
from smca.checkpoints import write_checkpoint
from smca.config import ConfigError, choose_device
from smca.errors import CheckpointError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_config_that_is_a_model_is_listed():
    names = model_zoo.list()
    files = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    bases = {name for name in files if Path(name).name.startswith("Base-")}
    assert {f"{name}.yaml" for name in names} == files - bases
    assert list(names) == sorted(names)
    assert len(bases) == 5
    for name in names:
        assert Path(model_zoo.config_file(name)).samefile(CONFIGS / f"{name}.yaml")
        cfg = model_zoo.get_config(name)
        # Caffe2 trained MSRA's ResNets.
        assert ("/MSRA/" in cfg.MODEL.WEIGHTS) == (cfg.INPUT.FORMAT == "BGR")


def test_an_unknown_name_has_near_ones():
    with pytest.raises(ConfigError, match=r"'table2_fixd'; did you mean ablations/table2_fixed"):
        model_zoo.config_file("table2_fixd")
    with pytest.raises(ConfigError, match=r"'@'; smca\.model_zoo\.list\(\) names them"):
        model_zoo.config_file("@")
    with pytest.raises(ConfigError, match="no config 'Base-SMCA'"):
        model_zoo.get_config("Base-SMCA")


def test_a_model_of_detectron2_says_what_it_needs():
    with pytest.raises(ConfigError, match="GeneralizedRCNN.* in its own host: train_net"):
        model_zoo.get("baselines/faster_rcnn_FPN_R50_36ep")


def test_a_model_with_weights(tmp_path):
    opts = ["MODEL.SMCA.NUM_QUERIES", 7, "MODEL.SMCA.QUERY_GROUPS", 1]
    torch.manual_seed(0)
    detector = model_zoo.get("quickstart", opts=opts)
    assert not detector.training
    assert isinstance(detector, smca.modeling.Detector)
    state = detector.state_dict()
    write_checkpoint({"model": state}, tmp_path / "model.pth")
    found = model_zoo.get("quickstart.yaml", tmp_path / "model.pth", opts=opts, device="cpu")
    assert_close(found.state_dict(), state, rtol=0, atol=0)
    opts += ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert_close(model_zoo.get("quickstart", opts=opts).state_dict(), state, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"model\.pth has 7 queries"):
        model_zoo.get("quickstart", tmp_path / "model.pth")


def test_devices():
    cfg = model_zoo.get_config("smca_R50_50ep")
    there = torch.cuda.is_available()
    assert choose_device(cfg).type == ("cuda" if there else "cpu")
    assert choose_device(cfg, "meta").type == "meta"
    with pytest.raises(ConfigError, match="device 'abacus'"):
        choose_device(cfg, "abacus")
    if not there:
        with pytest.raises(ConfigError, match="device 'cuda:0': there is no GPU"):
            choose_device(cfg, "cuda:0")
