"""Checkpoints of another detector than the model's are told."""

import pytest
import torch

from smca.checkpoints import load, write_checkpoint
from smca.errors import CheckpointError
from smca.modeling import build_detector


def test_another_kind_of_detector_is_named(config, tiny_opts, tmp_path):
    """Its encoder and its backbone may well fit, with the keys that they need."""
    tsp = [
        *("MODEL.META_ARCHITECTURE", "TSPFCOS", "MODEL.SMCA.QUERY_GROUPS", 1),
        *("MODEL.SMCA.IN_FEATURES", ["res3", "res4", "res5"]),
    ]
    smca = build_detector(config("quickstart", *tiny_opts))
    fcos = build_detector(config("quickstart", *tiny_opts, *tsp))
    for one, other, part in ((smca, fcos, "decoder"), (fcos, smca, "towers")):
        write_checkpoint({"model": one.state_dict()}, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=rf"has {part}\.\*.*it is another detector"):
            load(other, tmp_path / "model.pth")


def test_another_detector_of_detectron2_is_named(tmp_path, detector):
    names = "backbone.bottom_up.stem.conv1.weight", "backbone.fpn_output2.weight"
    write_checkpoint({"model": dict.fromkeys(names, torch.zeros(2))}, tmp_path / "frcnn.pth")
    with pytest.raises(CheckpointError, match="it is another detector, start from a backbone"):
        load(detector, tmp_path / "frcnn.pth")
