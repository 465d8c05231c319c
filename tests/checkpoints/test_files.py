"""Checkpoint files are read or refused, and no code runs from them."""

import os
import pickle
from collections import OrderedDict
from random import Random

import numpy as np
import pytest
import torch
import torchvision
from torch.testing import assert_close

from smca.checkpoints import SafeCheckpointing, load, read_checkpoint, write_checkpoint
from smca.checkpoints.files import damage
from smca.errors import CheckpointError
from smca.modeling import build_detector


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


def zoo_file(path, protocol=2, depth=18):
    """A file like those of Detectron2's model zoo: NumPy arrays under Detectron2's names."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    torch.save(theirs, path.with_suffix(".pth"))
    model = {
        name.removeprefix("backbone."): tensor.numpy()
        for name, tensor in read_checkpoint(path.with_suffix(".pth"))["model"].items()
    }
    model["stem.fc.weight"] = theirs["fc.weight"].numpy()
    content = {"model": model, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return theirs


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_zoo_and_torchvision_files_are_the_same_weights(tmp_path, protocol):
    theirs = zoo_file(tmp_path / "R-18.pkl", protocol)
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


@pytest.fixture
def detector(tiny_config):
    torch.manual_seed(0)
    return build_detector(tiny_config())


def test_backbone_weights_load_into_a_detector(tmp_path, config, caplog):
    zoo_file(tmp_path / "R-18.pkl")
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


def test_what_torch_saved_is_read_whatever_its_name_ends_in(tmp_path, detector):
    torch.save({"model": detector.state_dict()}, tmp_path / "R-50.pkl")
    found = read_checkpoint(tmp_path / "R-50.pkl")["model"]
    assert_close(found, dict(detector.state_dict()), rtol=0, atol=0)


def test_another_backbone_is_refused(tmp_path, config):
    zoo_file(tmp_path / "R-34.pkl", depth=34)
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
        ({"model": {"conv1_w": torch.ones(1)}}, "Caffe2"),
        ({"blobs": {"conv1_w": torch.ones(1)}}, "Caffe2"),
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


def test_no_path_loads_nothing(tmp_path, detector):
    for path in (None, ""):
        assert SafeCheckpointing(detector, str(tmp_path)).load(path) == {}


def test_a_truncated_file_is_named(tmp_path, detector):
    write_checkpoint({"model": detector.state_dict()}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"a\.pth is cut off; copy it again"):
        load(detector, tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="missing"):
        load(detector, tmp_path / "missing.pth")


def test_an_address_that_nobody_knows(tmp_path, detector):
    """Addresses that are known are tested in test_fetching.py."""
    with pytest.raises(CheckpointError, match="manifold://a.pth cannot be fetched .* other means"):
        SafeCheckpointing(detector, str(tmp_path)).load("manifold://a.pth")
    with pytest.raises(FileNotFoundError, match="manifold://a.pth' does not exist; download it"):
        load(detector, "manifold://a.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load(detector, tmp_path)


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


@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty", "gone"])
def test_a_damaged_newest_file_is_passed_over(tmp_path, tiny_config, caplog, fault):
    detector = build_detector(tiny_config())
    for number in range(3):
        with torch.no_grad():
            detector.decoder.query_embed.weight.fill_(number)
        checkpointer = SafeCheckpointing(detector, str(tmp_path))
        checkpointer.save_periodic(number)
    newest = tmp_path / "model_0000002.pth"
    content = bytearray(newest.read_bytes())
    if fault == "flipped":
        content[len(content) // 2] ^= 16
    newest.write_bytes({"truncated": content[:-1000], "flipped": content}.get(fault, b""))
    if fault == "gone":
        newest.unlink()
    extra = checkpointer.resume_or_load("", resume=True)
    assert extra["iteration"] == 1
    assert (detector.decoder.query_embed.weight == 1).all()
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "model_0000002.pth is damaged" in warning

    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint.*model_0000002\.pth.*000000"):
        checkpointer.resume_or_load("", resume=True)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pth"
    write_checkpoint({"model": {"a": torch.ones(2)}}, path)
    with pytest.raises(Exception, match="pickle|local object"):  # by version of Python
        write_checkpoint({"model": OrderedDict(a=lambda: None)}, path)
    assert_close(torch.load(path)["model"]["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def averaged_file(path, detector):
    """A checkpoint whose averaged weights are twice those of training; returns both."""
    state = detector.state_dict()
    average = {name: 2 * tensor for name, tensor in state.items()}
    write_checkpoint({"model": state, "ema": average, "iteration": 7}, path)
    return state, average


def test_a_reader_of_weights_takes_the_averaged_ones(tmp_path, detector, tiny_config):
    _, average = averaged_file(tmp_path / "a.pth", detector)
    other = build_detector(tiny_config())
    assert load(other, tmp_path / "a.pth", strict=True) == {"iteration": 7}
    assert_close(other.state_dict(), average, rtol=0, atol=0)
    # A new run that starts from them, too.
    other = build_detector(tiny_config())
    checkpointer = SafeCheckpointing(other, str(tmp_path / "new"))
    assert "ema" not in checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=True)
    assert_close(other.state_dict(), average, rtol=0, atol=0)


def test_a_resumed_run_takes_both(tmp_path, detector, tiny_config):
    state, average = averaged_file(tmp_path / "a.pth", detector)
    (tmp_path / "last_checkpoint").write_text("a.pth")
    other = build_detector(tiny_config())
    checkpointer = SafeCheckpointing(other, str(tmp_path))
    rest = checkpointer.resume_or_load("", resume=True)
    assert_close(other.state_dict(), state, rtol=0, atol=0)
    assert_close(rest["ema"], average, rtol=0, atol=0)
    # An evaluation of the same file does not.
    evaluated = build_detector(tiny_config())
    SafeCheckpointing(evaluated, strict=True).load(str(tmp_path / "a.pth"), checkpointables=[])
    assert_close(evaluated.state_dict(), average, rtol=0, atol=0)


def test_averaged_weights_that_are_not_tensors_are_refused(tmp_path, detector):
    path = tmp_path / "a.pth"
    write_checkpoint({"model": detector.state_dict(), "ema": {"decay": 0.9}}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth: 'decay' is a float, not a tensor"):
        load(detector, path)


def test_class_names_are_saved_where_they_are_known(tmp_path, detector):
    names = ("circle", "square", "triangle")
    SafeCheckpointing(detector, str(tmp_path)).save("without")
    SafeCheckpointing(detector, str(tmp_path), class_names=names).save("with", iteration=3)
    assert "class_names" not in load(detector, tmp_path / "without.pth")
    extra = load(detector, tmp_path / "with.pth")
    assert extra == {"class_names": list(names), "iteration": 3}


def test_a_folder_with_another_runs_checkpoints(tmp_path, caplog):
    """A run that begins anew there says so, and resumes only from its own files."""
    checkpointer = SafeCheckpointing(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save_periodic(9)
    checkpointer.resume_or_load("", resume=False)
    assert "--resume would have gone on from them" in caplog.text
    for number in (1, 3):
        checkpointer.save_periodic(number)
    (tmp_path / "model_0000003.pth").write_bytes(b"")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
