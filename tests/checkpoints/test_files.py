"""Checkpoint files are read or refused, and no code runs from them."""

import os
import pickle
from collections import OrderedDict
from random import Random

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from weights_server import write_zoo_resnet

from smca.checkpoints import load, read_checkpoint, write_checkpoint
from smca.checkpoints.files import damage
from smca.errors import CheckpointError


class Payload:
    """Makes a folder when a careless reader loads it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth"])
def test_no_code_runs(tmp_path, name):
    path = tmp_path / name
    content = {"model": {"stem.conv1.weight": Payload(tmp_path / "made")}}
    if name.endswith("pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_zoo_and_torchvision_files_are_the_same_weights(tmp_path, protocol):
    theirs = write_zoo_resnet(tmp_path / "R-18.pkl", protocol)
    zoo = read_checkpoint(tmp_path / "R-18.pkl")["model"]
    vision = read_checkpoint(tmp_path / "R-18.pth")["model"]
    assert zoo.keys() == vision.keys()
    for name, tensor in zoo.items():
        assert_close(tensor, vision[name])
    for ours, name in {
        "backbone.stem.conv1.weight": "conv1.weight",
        "backbone.stem.conv1.norm.running_var": "bn1.running_var",
        "backbone.res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
        "backbone.res3.0.shortcut.norm.bias": "layer2.0.downsample.1.bias",
        "backbone.res5.1.conv2.norm.weight": "layer4.1.bn2.weight",
    }.items():
        assert_close(zoo[ours], theirs[name])
    assert not any("fc" in name for name in zoo)


def test_numpy_2_pickles_are_read(tmp_path):
    # As NumPy 1 named the module.
    data = pickle.dumps({"model": {"stem.conv1.weight": np.ones(3)}}, protocol=2)
    for name in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        other = b"numpy._core.multiarray" if b"numpy._core" in data else b"numpy.core.multiarray"
        (tmp_path / "a.pkl").write_bytes(data.replace(other, name))
        assert_close(
            read_checkpoint(tmp_path / "a.pkl")["model"]["backbone.stem.conv1.weight"],
            torch.ones(3, dtype=torch.float64),
        )


def test_what_torch_saved_is_read_whatever_its_name_ends_in(tmp_path, detector):
    torch.save({"model": detector.state_dict()}, tmp_path / "R-50.pkl")
    found = read_checkpoint(tmp_path / "R-50.pkl")["model"]
    assert_close(found, dict(detector.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint: it is empty"),
        (b"not a checkpoint at all", "cannot be read .* begins with b'not a checkpoint"),
        (b"<!DOCTYPE html>\n<html>", "is a web page, perhaps of a proxy"),
        ({"model": {}}, "no tensors"),
        ({"model": None}, "no tensors"),
        ({"model": torch.ones(3)}, "no tensors"),
        ({"model": {"a": "text"}}, "'a' is a str"),
        ([1, 2], "a list"),
        ({"model": {"a": torch.ones(1)}}, "none of the model's tensors"),
        ({"model": {"conv1_w": torch.ones(1)}}, "STRIDE_IN_1X1 True"),
        ({"blobs": {"conv1_w": torch.ones(1)}}, "STRIDE_IN_1X1 True"),
    ],
)
def test_files_that_are_no_checkpoint_are_named(tmp_path, detector, content, message):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"file\.pth.*{message}"):
        load(detector, path)


def test_a_truncated_file_is_named(tmp_path, detector):
    write_checkpoint({"model": detector.state_dict()}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"a\.pth is cut off; copy it again"):
        load(detector, tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="missing"):
        load(detector, tmp_path / "missing.pth")


def test_flipped_bits_are_recognised_or_change_nothing(tmp_path, detector):
    path = tmp_path / "a.pth"
    write_checkpoint({"model": detector.state_dict(), "iteration": 7}, path)
    content, expected = path.read_bytes(), read_checkpoint(path)
    random = Random(0)
    recognised = 0
    for _ in range(100):
        place = random.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << random.randrange(8)
        path.write_bytes(flipped)
        if damage(path) is None:
            assert_close(read_checkpoint(path), expected, rtol=0, atol=0)
        else:
            recognised += 1
            with pytest.raises(CheckpointError, match=r"a\.pth"):
                read_checkpoint(path)
    # Parts begin at multiples of 64 bytes; the bytes between them are not used.
    assert recognised > 50


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pth"
    write_checkpoint({"model": {"a": torch.ones(2)}}, path)
    with pytest.raises(Exception, match="pickle|local object"):  # by version of Python
        write_checkpoint({"model": OrderedDict(a=lambda: None)}, path)
    assert_close(torch.load(path)["model"]["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_averaged_weights_that_are_not_tensors_are_refused(tmp_path, detector):
    path = tmp_path / "a.pth"
    write_checkpoint({"model": detector.state_dict(), "ema": {"decay": 0.9}}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth: 'decay' is a float, not a tensor"):
        load(detector, path)
