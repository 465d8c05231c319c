"""A project in Detectron2's own way trains, evaluates and resumes the configs of this project."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import build_detection_test_loader  # noqa: E402
from detectron2.engine import DefaultPredictor, default_argument_parser  # noqa: E402
from detectron2.evaluation import COCOEvaluator, inference_on_dataset  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

import smca  # noqa: E402
import smca.d2  # noqa: E402
from smca.config import flatten, load_cfg  # noqa: E402
from smca.d2.evaluation import CocoEvaluator  # noqa: E402
from smca.d2.trainer import Trainer  # noqa: E402
from smca.data.images import read_rgb  # noqa: E402
from smca.errors import ConfigError, DatasetError  # noqa: E402

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "DETECTRON2.md").read_text()
PROJECT = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]


@pytest.fixture
def project(loggers, tmp_path):
    """The module of the documentation's train_net.py."""
    file = tmp_path / "my_project" / "train_net.py"
    file.parent.mkdir()
    file.write_text(PROJECT)
    spec = importlib.util.spec_from_file_location("my_project", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(project, *arguments):
    """Run the project's ``main`` with a command line."""
    return project.main(default_argument_parser().parse_args(list(map(str, arguments))))


def client_config(file, *opts):
    cfg = get_cfg()
    smca.d2.add_smca_config(cfg)
    cfg.merge_from_file(file)
    cfg.merge_from_list(list(opts))
    return cfg


def checkpoint(folder, name="model_final.pth"):
    return torch.load(Path(folder, name), weights_only=True)


def test_detectron2_reads_every_config_as_we_do():
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        ours = get_cfg()
        smca.d2.add_smca_config(ours)
        assert flatten(client_config(str(file))) == flatten(load_cfg(ours, str(file))), file


def test_a_project_trains_and_evaluates(project, config_file, tmp_path):
    out = tmp_path / "out"
    # As many classes as the data has, whose datasets the config alone names.
    file = config_file("MODEL.SMCA.NUM_CLASSES", 0, "TEST.EVAL_PERIOD", 6)
    start(project, "--config-file", file)
    trained = checkpoint(out)
    assert trained["model"]["heads.class_head.weight"].shape == (3, 32)
    assert "betas" in trained["trainer"]["_trainer"]["optimizer"]["param_groups"][0]
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP" in line for line in lines)
    results = start(
        project, "--eval-only", "--config-file", file, "MODEL.WEIGHTS", out / "model_final.pth"
    )
    assert "AP" in results["bbox"]


@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_a_resumed_run_has_the_learning_rate_of_its_iteration(
    whose, project, config_file, tmp_path
):
    file = config_file("SOLVER.STEPS", (2,), "SOLVER.MAX_ITER", 5)
    start(project, "--config-file", file)
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000003.pth")
    trainer = (project.Trainer if whose == "theirs" else Trainer)(client_config(file))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4
    rates = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.train()
    assert rates == [pytest.approx(0.0005 * 0.1)]


def test_our_run_resumes_in_detectron2s_trainer(project, config_file, d2_config, tmp_path):
    running = Trainer(d2_config())
    running.resume_or_load(resume=False)
    running.train()
    file = config_file("SOLVER.MAX_ITER", 8)
    start(project, "--resume", "--config-file", file)
    state = checkpoint(tmp_path / "out")
    assert state["iteration"] == 7
    steps = [part["step"] for part in state["trainer"]["_trainer"]["optimizer"]["state"].values()]
    assert set(map(int, steps)) == {8}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.EMA.ENABLED", True], r"do not read MODEL\.EMA\.ENABLED; take smca\.d2\.Trainer"),
        (["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bfloat16"], r"SOLVER\.AMP\.PREC"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"], "it must be 'full_model', or"),
        (
            ["MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.BACKBONE.FREEZE_RANDOM", False],
            r"leaves random .*backbone\.stem.*MODEL\.BACKBONE\.FREEZE_RANDOM True",
        ),
        (["DATASETS.COCO_FORMAT", [["a", "b"]]], r"DATASETS\.COCO_FORMAT is .*; it must be a list"),
    ],
)
def test_configs_that_detectron2s_trainers_would_misread_are_refused(opts, message, config_file):
    cfg = client_config(config_file())
    cfg.merge_from_list(opts)
    with pytest.raises(ConfigError, match=message):
        smca.d2.build_optimizer(cfg, build_model(cfg))


def test_classes_to_be_counted_where_no_data_is(config_file):
    missing = [["train", "nowhere.json", "nowhere"]]
    cfg = client_config(config_file(), "MODEL.SMCA.NUM_CLASSES", 0)
    cfg.DATASETS.COCO_FORMAT = missing
    with pytest.raises(DatasetError, match="nowhere.json"):
        build_model(cfg)


def test_datasets_of_a_config_are_registered_anew_only_with_other_files(config_file, shapes):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    cfg = client_config(config_file())
    build_model(cfg)
    DatasetCatalog.get("val")
    build_model(cfg)
    assert MetadataCatalog.get("val").thing_classes == ["circle", "rectangle", "triangle"]
    assert len(DatasetCatalog.get("val")) == 6
    cfg.DATASETS.COCO_FORMAT = [["val", *shapes["train"]]]
    build_model(cfg)
    assert len(DatasetCatalog.get("val")) == 12


@pytest.fixture
def trained(config_file, tmp_path):
    """A config with weights, and its model in evaluation mode."""
    cfg = client_config(config_file())
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    return cfg, model


def test_coco_evaluator_scores_as_ours(trained, tmp_path):
    cfg, model = trained
    results = [
        inference_on_dataset(
            model, build_detection_test_loader(cfg, "val"), kind("val", output_dir=str(tmp_path))
        )["bbox"]
        for kind in (COCOEvaluator, CocoEvaluator)
    ]
    assert results[0]["AP"] > 0
    names = set(results[0]) & set(results[1])
    assert len(names) == 9
    for name in names:
        assert results[1][name] == pytest.approx(results[0][name], nan_ok=True), name


@pytest.mark.parametrize("averaged", [False, True])
def test_default_predictor_finds_what_ours_finds(averaged, trained, shapes, program, tmp_path):
    cfg, model = trained
    ours = smca.Predictor(cfg)
    if averaged:
        drawn = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
        content = {"model": drawn, "ema": model.state_dict(), "class_names": list("abc")}
        torch.save(content, tmp_path / "run.pth")
        ours = smca.Predictor(cfg, tmp_path / "run.pth")
        cfg.MODEL.WEIGHTS = str(tmp_path / "average.pth")
        convert = ("tools/convert_checkpoint.py", "--from", "ema")
        program(*convert, tmp_path / "run.pth", cfg.MODEL.WEIGHTS).done()
        assert checkpoint(tmp_path, "average.pth")["class_names"] == list("abc")
        again = program(*convert, cfg.MODEL.WEIGHTS, tmp_path / "b.pth")
        assert again.returncode == 2 and "has no averaged weights" in again.last
    file = sorted(Path(shapes["val"][1]).glob("*.png"))[0]
    found = DefaultPredictor(cfg)(np.asarray(read_rgb(file))[:, :, ::-1])["instances"]
    ours = ours(file, threshold=0.0)
    assert_close(found.pred_boxes.tensor, torch.as_tensor(ours.boxes), rtol=1e-4, atol=1e-3)
    assert_close(found.scores, torch.as_tensor(ours.scores))
