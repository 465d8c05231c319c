"""Released files that do not fit or cannot be trusted are refused, by name, and nothing is lost."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import smca
from released_files import Released, convert, matching_configs, read_released, recognise
from smca.checkpoints import load, read_checkpoint
from smca.config import load_cfg
from smca.errors import CheckpointError
from smca.modeling import build_detector

ROOT = Path(__file__).parents[2]
LAYER = "transformer.decoder.layers.3"
BODY = "backbone.0.body"


def detector_state(name):
    cfg = load_cfg(smca.get_cfg(), str(ROOT / "configs" / f"{name}.yaml"))
    with torch.device("meta"):
        return smca.build_detector(cfg).state_dict()


def without(name):
    return lambda tensors: tensors.pop(name)


def with_shape(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("detr", with_shape("mask_head.lay1.bias", 4), r"left over: mask_head\.lay1\.bias"),
        ("detr", with_shape(f"{LAYER}.point2.bias", 4), r"left over: .*3\.point2\.bias"),
        ("detr", without(f"{LAYER}.norm2.bias"), r"missing: .*layers\.3\.norm2\.bias"),
        (
            "detr",
            without(f"{LAYER}.self_attn.in_proj_weight"),
            r"missing: .*layers\.3\.self_attention\.q_proj.*, .*\.k_proj.*, .*\.v_proj\.weight$",
        ),
        (
            "detr",
            with_shape(f"{LAYER}.self_attn.in_proj_weight", 256, 256),
            r"wrong shape: .*3\.self_attn\.in_proj_weight \(256, 256\) for .*q_proj",
        ),
        ("detr", with_shape("class_embed.weight", 251, 256), r"wrong shape: class_embed\.weight"),
        # 80 classes and no-object, perhaps not COCO's.
        ("detr", with_shape("class_embed.weight", 81, 256), r"wrong shape: class_embed\.weight"),
        ("detr", with_shape("class_embed.bias", 91), r"wrong shape: class_embed\.bias"),
        ("detr", with_shape("query_embed.weight"), r"wrong shape: query_embed\.weight \(\)"),
        (
            "detr",
            with_shape(f"{BODY}.layer2.0.bn1.running_var", 3),
            r"wrong shape: .*body\.layer2\.0\.bn1\.running_var \(3,\) for backbone\.res3",
        ),
        ("detr", without(f"{BODY}.layer3.5.conv1.weight"), r"missing: .*res4\.5\.conv1"),
        ("smca", with_shape(f"{LAYER}.point1.layers.0.bias", 256), r"left over: .*3\.point1"),
        ("smca", without(f"{LAYER}.point3.weight"), r"missing: .*3\.prior\.scales\.weight"),
        (
            "conditional_detr",
            with_shape(f"{LAYER}.ca_qpos_proj.bias", 256),
            r"left over: .*3\.ca_qpos_proj\.bias",
        ),
        (
            "smca_depthwise",
            with_shape("transformer.encoder.layers.1.high_to_low_2.weight", 256, 1, 4, 4),
            r"wrong shape: .*1\.high_to_low_2\.weight \(256, 1, 4, 4\)",
        ),
        (
            "smca_depthwise",
            with_shape("transformer.encoder.layers.1.conv_1.weight", 256, 256, 3, 3),
            r"wrong shape: .*1\.conv_1\.weight",
        ),
    ],
)
def test_what_does_not_fit_is_named(published, kind, change, message):
    released = published(kind, 92 if kind == "detr" else 91)
    change(released.tensors)
    (config, *_) = matching_configs(released, kind)
    with pytest.raises(CheckpointError, match=rf"^released\.pth .*{message}"):
        convert(released, kind, detector_state(config))


def test_files_of_other_kinds_are_refused(published):
    released = published("smca", 92)
    # As another kind, and for a config with another neck.
    with pytest.raises(
        CheckpointError, match=r"left over: .*point1.*missing: .*self_attention\.q_pos"
    ):
        state = detector_state("baselines/conditional_detr_R50_50ep")
        convert(released, "conditional_detr", state)
    with pytest.raises(CheckpointError, match=r"missing: neck\.level_embed"):
        convert(released, "smca", detector_state("smca_R50_50ep"))
    unknown = Released("a.pth", {"a.b": torch.ones(1)}, argparse.Namespace())
    with pytest.raises(CheckpointError, match=r"^a\.pth has none of the known layouts.*a\.b"):
        recognise(unknown)
    ours = Released("a.pth", {"heads.class_head.bias": torch.ones(1)}, argparse.Namespace())
    with pytest.raises(CheckpointError, match="use it as it is"):
        recognise(ours)


@pytest.mark.parametrize(
    "kind", ["smca", "smca_depthwise", "conditional_detr", "up_detr_pretrained", "up_detr", "detr"]
)
def test_the_converter_is_named_for_all_it_reads(published, tmp_path, tiny_config, kind):
    torch.save({"model": published(kind, 92).tensors}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"none of the model.*convert_checkpoint\.py reads"):
        load(build_detector(tiny_config()), tmp_path / "a.pth")


class Payload:
    """Makes a folder when a careless reader loads it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_settings_are_read_and_no_code_runs(tmp_path):
    path, payload = tmp_path / "a.pth", Payload(tmp_path / "made")
    model = {"a": torch.ones(1)}
    settings = argparse.Namespace(lr=1e-4, dilation=True, masks=None, lr_drop=[40])
    torch.save({"model": model, "args": settings}, path)
    assert read_released(path).settings == settings
    assert read_checkpoint(path)["args"] == settings
    for content in (payload, argparse.Namespace(a=payload), argparse.Namespace(path=Path("a"))):
        torch.save({"model": model, "args": content}, path)
        with pytest.raises(CheckpointError, match=r"a\.pth cannot be read.*refused to load"):
            read_released(path)
    torch.save({"model": {"a": payload}}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be read.*refused to load"):
        read_released(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [b"no checkpoint", {"model": {}}, {"state": 3}, [1], {0: torch.ones(1)}, torch.ones(2)],
)
def test_files_that_are_no_checkpoint_are_named(convert_checkpoint, tmp_path, content):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    code, printed = convert_checkpoint(path, tmp_path / "out.pth")
    assert code == 2 and "CheckpointError" in printed and "file.pth" in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out.pth").exists()


def test_nothing_is_lost(convert_checkpoint, tmp_path):
    source, output = tmp_path / "resnet.pth", tmp_path / "out.pth"
    torch.save(torchvision.models.resnet18().state_dict(), source)
    output.write_text("mine")
    code, printed = convert_checkpoint(source, output)
    assert code == 2 and "--overwrite" in printed and output.read_text() == "mine"
    code, printed = convert_checkpoint("--overwrite", source, source)
    assert code == 2 and "itself" in printed and len(read_released(source).tensors) == 122
    for bad in (tmp_path, tmp_path / "missing" / "out.pth", tmp_path / "out.pkl"):
        code, printed = convert_checkpoint("--overwrite", source, bad)
        assert code == 2 and str(bad) in printed
    code, printed = convert_checkpoint("--overwrite", tmp_path / "none.pth", output)
    assert code == 2 and "none.pth" in printed and output.read_text() == "mine"
    code, printed = convert_checkpoint("--overwrite", source, output)
    assert code == 0 and read_checkpoint(output)["__author__"] == "torchvision's ResNet"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "resnet.pth"]


@pytest.mark.slow
def test_the_program(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects" / "SMCA")}
    program = str(ROOT / "tools" / "convert_checkpoint.py")

    def run():
        return subprocess.run(
            [sys.executable, program, "--from", "auto", "in.pth", "out.pth"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "in.pth")
    finished = run()
    assert finished.returncode == 2
    assert finished.stderr.startswith("CheckpointError: in.pth has none of the known layouts")
    assert len(finished.stderr.splitlines()) == 1
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "in.pth")
    finished = run()
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    config = shlex.split(finished.stdout.splitlines()[-1])[3]
    assert (tmp_path / config).resolve() == ROOT / "configs" / "smca_R50_50ep.yaml"
    assert (tmp_path / "out.pth").exists()
