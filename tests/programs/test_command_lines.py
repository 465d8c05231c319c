"""Command lines as users of Detectron2 and DETR type them, in each host."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from engines import needs_detectron2

import smca
from smca.checkpoints import write_checkpoint
from smca.modeling import build_detector


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home folder, and an empty folder to run programs in, which they have to leave empty."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(elsewhere)
    yield folder
    assert not list(elsewhere.iterdir())


@pytest.fixture
def model(home, config_file, tiny_config):
    """``~/tiny.yaml`` and ``~/model.pth``, from which runs of two iterations start."""
    cfg = tiny_config("OUTPUT_DIR", "x")
    names = ["circle", "rectangle", "triangle"]
    content = {"model": build_detector(cfg).state_dict(), "class_names": names}
    write_checkpoint(content, home / "model.pth")
    file = Path(config_file("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()))
    written = yaml.safe_load(file.read_text())
    written["OUTPUT_DIR"], written["MODEL"]["WEIGHTS"] = "~/run", "~/model.pth"
    (home / "tiny.yaml").write_text(yaml.safe_dump(written))
    return home


def test_runs_take_home_folders(engine, model, train_net):
    run = ("--engine", engine, "--config-file", "~/tiny.yaml")
    train_net(*run)
    written = yaml.safe_load((model / "run/config.yaml").read_text())
    assert written["OUTPUT_DIR"] == str(model / "run")
    assert written["MODEL"]["WEIGHTS"] == str(model / "model.pth")
    last = ("--config-file=~/run/config.yaml", "MODEL.WEIGHTS", "~/run/model_final.pth")
    output = train_net("--engine", engine, "--eval-only", *last, "OUTPUT_DIR=~/evaluated")
    assert f"Weights: {model / 'run/model_final.pth'} (as named)" in output
    assert (model / "evaluated/inference").is_dir()


def test_programs_take_home_folders(engine, model, program, shapes):
    (model / "photos").symlink_to(shapes["val"][1])
    common = ("--config-file", "~/tiny.yaml", "--weights", "~/model.pth")
    places = ("--input", "~/photos", "--output", "~/drawn", "--save-json=~/drawn/found.json")
    program("demo.py", "--engine", engine, *common, *places).done()
    assert len(list((model / "drawn").iterdir())) == 7
    if engine == "native":
        image = next((model / "photos").iterdir()).name
        looked = ("--image", f"~/photos/{image}", "--output", "~/looked")
        program("tools/visualize_attention.py", *common, *looked).done()
        assert list((model / "looked").glob("*.html"))
        data = ("--json", shapes["val"][0], "--images", "~/photos", "--output", "~/check")
        program("tools/check_dataset.py", *data).done()
        assert (model / "check/report.json").exists()


@needs_detectron2
def test_lazy_configs_take_home_folders(model, program, shapes, tmp_path):
    changes = [
        *("train.max_iter=1", "train.output_dir=~/lazy", "dataloader.train.num_workers=0"),
        *("dataloader.test.num_workers=0", "dataloader.train.total_batch_size=1"),
        *(f"dataloader.coco_format={[[n, *files] for n, files in shapes.items()]}",),
        *("dataloader.train.dataset.names=[train]", "dataloader.test.dataset.names=val"),
    ]
    config = Path(__file__).parents[2] / "configs/lazy/quickstart.py"
    lazy = ("tools/lazyconfig_train_net.py", "--config-file", config, "--opts", *changes)
    program(*lazy, "--num-gpus", 1).done()
    assert f"output_dir: {model}/lazy" in (model / "lazy/config.yaml").read_text()


def test_python_takes_home_folders(engine, model):
    predictor = smca.Predictor("~/tiny.yaml", "~/model.pth", engine=engine)
    assert predictor.weights.path == str(model / "model.pth")
    cfg = smca.config.load_cfg(smca.get_cfg(), "~/tiny.yaml")
    cfg.MODEL.WEIGHTS = "~/model.pth"
    predictor = smca.Predictor(cfg, engine=engine)
    assert predictor.class_names == ("circle", "rectangle", "triangle")


@pytest.mark.parametrize(
    "pairs",
    [
        ["DATASETS.TRAIN", "train", "INPUT.MIN_SIZE_TRAIN", 48, "SOLVER.STEPS", 1],
        ["--opts", "DATASETS.TRAIN", "(train,)", "INPUT.MIN_SIZE_TRAIN", "48,"],
        ["DATASETS.TRAIN=train", "INPUT.MIN_SIZE_TRAIN=48", "SOLVER.BASE_LR=0.001"],
        ["DATASETS.TRAIN", "['train']", "--opts", "INPUT.MIN_SIZE_TRAIN", "[48]"],
    ],
)
def test_pairs_in_all_forms(pairs, engine, config_file, train_net, tmp_path):
    file = config_file("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "DATASETS.TEST", ())
    train_net("--engine", engine, "--config-file", file, *pairs, "--num-gpus", 1)
    written = yaml.unsafe_load((tmp_path / "out/config.yaml").read_text())
    assert list(written["DATASETS"]["TRAIN"]) == ["train"]
    assert list(written["INPUT"]["MIN_SIZE_TRAIN"]) == [48]


def test_flags_after_pairs(engine, config_file, program, tmp_path):
    run = ("train_net.py", "--config-file", config_file(), "SOLVER.MAX_ITER", 2, "SEED", -1)
    output = program(*run, "--eval-only", "--engine", engine).output
    assert output.startswith(f"Engine: {engine}, as asked for")
    assert "there are no trained weights" in output
    assert program(*run, "--import", tmp_path / "nothing.py").last.endswith("no such file")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["SOLVER.BASE_LR"], "SOLVER.BASE_LR has no value"),
        (["SOLVER.BASE_LR", "--eval-only"], "SOLVER.BASE_LR has no value"),
        (["--lr", "1e-4"], "SOLVER.BASE_LR ..."),
        (["--output_dir", "x"], "OUTPUT_DIR ..."),
        (["--batch-size", 2], "SOLVER.IMS_PER_BATCH ..."),
        (
            ["--resume", "model.pth"],
            r"MODEL.WEIGHTS model.pth.*'model.pth' has no value, or no key",
        ),
        (["DATASETS.TRAIN", "a", "b"], r"DATASETS.TRAIN a,b; 'b' has no"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 3], r"MODEL.SMCA.NUM_CLASSES"),
        (["MODEL.RETINANET.SCORE_THRESH_TEST", 0.5], "demo.py's --threshold"),
        (["MODEL.MASK_ON", "true"], "MODEL.MASK_ON is True; it must be False, because"),
        (["OUTPUT_DIR", "~nobody-of-this-name/x"], r"OUTPUT_DIR is '~nobody.*\./~ is a folder"),
        (["MODEL.DEVICE", "mps"], "MODEL.DEVICE is 'mps'; it must be a device that torch has"),
        (["SOLVER.STEPS", "last"], r"SOLVER.STEPS in the command line is 'last'.*\(.*,\)"),
    ],
)
def test_wrong_words_are_answered_with_the_line_to_type(
    words, answer, engine, config_file, program
):
    if "mps" in words and torch.backends.mps.is_available():
        pytest.skip("has mps")
    run = program("train_net.py", "--engine", engine, "--config-file", config_file(), *words)
    assert run.returncode == 2
    assert re.search(answer, run.last), run.output


def test_a_python_config_is_answered_with_its_program(program, engine):
    run = program("train_net.py", "--engine", engine, "--config-file", "configs/lazy/quickstart.py")
    assert run.last.endswith("tools/lazyconfig_train_net.py trains it")


def test_lists_in_yaml_may_be_one_name(config_file, tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text(
        f"_BASE_: {config_file()}\nDATASETS: {{TRAIN: a, TEST: '(b, c d,)'}}\n"
        "INPUT: {MIN_SIZE_TRAIN: 480, CROP: {SIZE: 384}}\n"
    )
    cfg = smca.config.load_cfg(smca.get_cfg(), str(file))
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("a",), ("b", "c d"))
    assert cfg.INPUT.MIN_SIZE_TRAIN == (480,)


def test_demo_takes_the_flags_of_detectron2s(engine, model, program, shapes):
    image = next(Path(shapes["val"][1]).iterdir())
    flags = ["--input", image, "--confidence-threshold", 0.5, "--engine", engine]
    theirs = ["--output", "~/drawn", "--opts", "MODEL.WEIGHTS", model / "model.pth", "--overwrite"]
    output = program("demo.py", "--config-file", "~/tiny.yaml", *flags, *theirs).done()
    assert f"by {model / 'model.pth'}" in output
    run = program("demo.py", "--config-file", "~/tiny.yaml", "--video-input", "~/no.mp4", *theirs)
    assert run.last == f"ConfigError: --input {model / 'no.mp4'} does not exist"
    run = program("demo.py", "--config-file", "~/tiny.yaml", image, *theirs)
    assert run.last.endswith("after --input")
