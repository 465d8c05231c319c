"""Starting weights as the programs meet them: at an address, without a network, left out."""

import io
import json
from pathlib import Path

import pytest
import torch
import torchvision
from engines import needs_detectron2
from weights_server import Server

import smca
from smca.errors import CheckpointError

ROOT = Path(__file__).parents[2]
LAZY = "tools/lazyconfig_train_net.py"
ZOO = "detectron2/ImageNetPretrained/torchvision/R-50.pkl"
# A ResNet-18 of torchvision under a small detector; its first two stages are frozen.
RESNET18 = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "FrozenBN"),
    *("MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.BACKBONE.FREEZE_RANDOM", False),
    *("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def offline(cache, monkeypatch, tmp_path):
    """No network, no data, an empty cache."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "no datasets"))


@pytest.fixture(scope="module")
def resnet18():
    """Its tensors, and the bytes of its file."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    return state, file.getvalue()


def refused(ended):
    """The lines of a program that could not work."""
    assert ended.returncode == 2, ended.output[-3000:]
    assert "Traceback" not in ended.output
    return ended.output.splitlines()


def test_the_readmes_command_without_a_network(engine, offline, cache, program, tmp_path):
    run = ("--config-file", "configs/smca_R50_108ep.yaml", "--num-gpus", 8)
    arguments = (*run, "--engine", engine, "OUTPUT_DIR", tmp_path / "out")
    *before, last = refused(program("train_net.py", *arguments))
    assert "CheckpointError: MODEL.WEIGHTS: detectron2://ImageNetPretrained/torchvision" in last
    assert f"put the file at {cache / ZOO}, or set MODEL.WEIGHTS to the path of a copy" in last
    assert all(line.startswith(("Engine: ", "MODEL.DEVICE: ")) for line in before), before


@needs_detectron2
def test_lazy_configs_without_a_network(offline, cache, program, tmp_path):
    run = ("--config-file", "configs/lazy/smca_R101_50ep.py", f"train.output_dir={tmp_path}")
    last = refused(program(LAZY, *run))[-1]
    place = cache / "download.pytorch.org/models/resnet101-63fe2227.pth"
    assert "CheckpointError: train.init_checkpoint: https://download.pytorch.org/models" in last
    assert f"put the file at {place}, or set train.init_checkpoint to the path of a copy" in last


def test_every_config_names_weights_of_its_own_depth(config):
    """Or none, and then nothing is frozen."""
    for name in smca.model_zoo.list():
        cfg = smca.model_zoo.get_config(name)
        if name.startswith("baselines/up_detr"):
            continue  # SwAV's ResNet-50, and the run that starts from it
        depth, weights = cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.WEIGHTS
        assert (f"R-{depth}.pkl" in weights or f"/resnet{depth}-" in weights) == bool(weights)
        frozen = cfg.MODEL.BACKBONE.FREEZE_AT > 0 or cfg.MODEL.RESNETS.NORM == "FrozenBN"
        assert frozen == bool(weights)
        assert not cfg.MODEL.BACKBONE.FREEZE_RANDOM


@needs_detectron2
def test_lazy_configs_name_the_weights_of_the_yaml_files():
    from detectron2.config import LazyConfig

    for file in (ROOT / "configs/lazy").rglob("*.py"):
        if file.parent.name != "common":
            name = file.relative_to(ROOT / "configs/lazy").with_suffix("").as_posix()
            lazy = LazyConfig.load(str(file))
            assert lazy.train.init_checkpoint == smca.model_zoo.get_config(name).MODEL.WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["--num-gpus", "torchrun"])
def test_workers_fetch_once(engine, launch, cache, resnet18, config_file, start_program, tmp_path):
    """And what is frozen is, in the end, what was fetched."""
    state, content = resnet18
    server = Server(content, "slow")
    address = f"{server.address}/resnet18.pth"
    run = ("--engine", engine, "--config-file", config_file(*RESNET18), "MODEL.WEIGHTS", address)
    try:
        if launch == "torchrun":
            before = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2)
            process = start_program(*before, ROOT / "train_net.py", *run, script="-m")
        else:
            process = start_program("--num-gpus", 2, *run)
        output = process.done()
    finally:
        server.stop()
    assert server.requests == ["/resnet18.pth"]
    assert "resnet18.pth: backbone loaded, the rest starts anew" in output
    model = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    found = model["backbone.res2.1.conv2.weight"]
    torch.testing.assert_close(found, state["layer1.1.conv2.weight"], rtol=0, atol=0)
    assert address in (tmp_path / "out/config.yaml").read_text()


@pytest.mark.parametrize("answer", ["missing", "page", "cut"])
def test_a_server_that_fails_is_one_line(engine, answer, cache, resnet18, config_file, program):
    """Before any data is read: that of this config is not there."""
    server = Server(resnet18[1], answer)
    address = f"{server.address}/resnet18.pth"
    own = ("DATASETS.COCO_FORMAT", [["train", "no.json", "."]], "MODEL.WEIGHTS", address)
    file = config_file(*RESNET18, *own)
    try:
        last = refused(program("train_net.py", "--engine", engine, "--config-file", file))[-1]
    finally:
        server.stop()
    assert f"CheckpointError: MODEL.WEIGHTS: {address} cannot be fetched: " in last
    assert f"put the file at {cache / address.removeprefix('http://')}, or" in last


def test_frozen_stages_without_weights_are_refused(engine, config_file, program):
    for opts in ((), ("--resume",)):
        arguments = ("--engine", engine, "--config-file", config_file(*RESNET18), *opts)
        last = refused(program("train_net.py", *arguments))[-1]
        assert "ConfigError: MODEL.WEIGHTS is empty, which leaves random" in last
        assert "set MODEL.WEIGHTS to weights" in last
        assert "or both MODEL.BACKBONE.FREEZE_AT 0 and MODEL.RESNETS.NORM 'GN'" in last


def test_a_run_that_is_refused_leaves_anothers_config(engine, config_file, program, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text("MODEL: {WEIGHTS: ''}\n")
    before = (out / "config.yaml").read_bytes()
    refused(program("train_net.py", "--engine", engine, "--config-file", config_file(*RESNET18)))
    assert (out / "config.yaml").read_bytes() == before


@needs_detectron2
def test_lazy_configs_without_weights_are_refused(shapes, program, tmp_path):
    own = json.dumps([["shapes_train", *shapes["train"]], ["shapes_val", *shapes["val"]]])
    changes = (f"dataloader.coco_format={own}", "model.backbone.freeze_at=2")
    run = ("--config-file", "configs/lazy/quickstart.py", *changes, f"train.output_dir={tmp_path}")
    last = refused(program(LAZY, *run))[-1]
    assert "ConfigError: train.init_checkpoint is empty, which leaves random" in last
    assert "or both model.backbone.freeze_at 0 and model.backbone.norm 'GN'" in last


def test_a_backbone_alone_predicts_nothing(resnet18, config_file, tmp_path):
    (tmp_path / "backbone.pth").write_bytes(resnet18[1])
    with pytest.raises(CheckpointError, match=r"backbone\.pth holds a backbone alone"):
        smca.Predictor(config_file(*RESNET18), tmp_path / "backbone.pth")


def test_a_model_of_the_zoo_begins_as_training_does(cache, resnet18, monkeypatch):
    """As Detectron2's ``model_zoo.get``: the config's weights, or none by ``weights=""``."""
    state, content = resnet18
    server = Server(content)
    opts = [*RESNET18, "MODEL.WEIGHTS", f"{server.address}/resnet18.pth"]
    try:
        detector = smca.model_zoo.get("smca_R50_50ep", opts=opts, device="cpu")
        random = smca.model_zoo.get("smca_R50_50ep", "", opts=opts, device="cpu")
    finally:
        server.stop()
    expected = state["layer4.1.conv2.weight"]
    torch.testing.assert_close(detector.backbone.res5[1].conv2.weight.data, expected)
    assert not torch.equal(random.backbone.res5[1].conv2.weight.data, expected)


def test_a_run_is_evaluated_after_it_was_moved(engine, config_file, train_net, tmp_path):
    """Its own checkpoint lies beside its config, wherever it started and OUTPUT_DIR is."""
    torch.manual_seed(0)
    run = ("--engine", engine, "--config-file", config_file("SOLVER.MAX_ITER", 2, "SEED", 1))
    train_net(*run, "SOLVER.STEPS", ())
    started = tmp_path / "started.pth"
    (tmp_path / "out/model_final.pth").rename(started)
    train_net(*run, "SOLVER.STEPS", (), "MODEL.WEIGHTS", started, "SEED", 2)
    (tmp_path / "out").rename(tmp_path / "moved")
    ap = [
        values["bbox/AP"]
        for values in map(json.loads, (tmp_path / "moved/metrics.json").read_text().splitlines())
        if "bbox/AP" in values
    ]
    config = tmp_path / "moved/config.yaml"
    output = train_net("--engine", engine, "--config-file", config, "--eval-only")
    used = tmp_path / "moved/model_final.pth"
    assert f"Weights: {used} (the last checkpoint of the run, and not {started})" in output
    assert ap and smca.Predictor(config).weights.path == str(used)
    named = ("MODEL.WEIGHTS", started)
    output = train_net("--engine", engine, "--config-file", config, "--eval-only", *named)
    assert f"Weights: {started} (as named)" in output
