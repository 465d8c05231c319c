"""The two ways to train in a Detectron2 project, as documented; and what tells of a third."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.data import build_detection_train_loader  # noqa: E402
from detectron2.engine import DefaultTrainer  # noqa: E402
from detectron2.evaluation import COCOEvaluator  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.solver import build_optimizer as build_their_optimizer  # noqa: E402

import smca.d2  # noqa: E402
from smca.errors import ConfigError  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/MODEL.md"])
def test_the_documented_lines_train_as_the_config_says(page, d2_config, tmp_path, loggers):
    """Line by line: this project's trainer, and Detectron2's with two overrides."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (ours,) = [block for block in blocks if "smca.d2.Trainer(cfg)" in block]
    (theirs,) = [block for block in blocks if "(DefaultTrainer)" in block]
    mappers = []

    def load(cfg, mapper):
        mappers.append(mapper)
        return build_detection_train_loader(cfg, mapper=mapper)

    cfg = d2_config("SOLVER.BACKBONE_MULTIPLIER", 0.1)
    for name, block in ("ours", ours), ("theirs", theirs):
        cfg.defrost()
        cfg.OUTPUT_DIR = str(tmp_path / name)
        given = {"cfg": cfg, "smca": smca, "DefaultTrainer": DefaultTrainer}
        given["build_detection_train_loader"] = load
        exec(block, given)
        trainer = given.get("trainer") or given["MyTrainer"](cfg)
        if name == "theirs":
            trainer.train()
        assert isinstance(trainer.optimizer, torch.optim.AdamW)
        assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 2
        assert (tmp_path / name / "model_final.pth").exists()
    assert [type(mapper) for mapper in mappers] == [smca.d2.DetrDatasetMapper]


class Evaluated(DefaultTrainer):
    """As every project has it; it keeps Detectron2's optimizer."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


@pytest.mark.parametrize("kind", [DefaultTrainer, Evaluated])
@pytest.mark.parametrize("clips", [True, False])
def test_a_trainer_with_detectron2s_optimizer_is_refused(clips, kind, d2_config, loggers):
    cfg = d2_config("SOLVER.CLIP_GRADIENTS.ENABLED", clips)
    message = r"SGD, and does not read SOLVER\.OPTIMIZER AdamW.* smca\.d2\.Trainer\(cfg\), or"
    with pytest.raises(ConfigError, match=message):
        kind(cfg)
    kind.build_model(cfg)  # to evaluate alone


@pytest.mark.parametrize(
    ("build", "opts", "told"),
    [
        (build_their_optimizer, [], True),
        (build_their_optimizer, ["SOLVER.OPTIMIZER", "SGD"], False),
        (
            build_their_optimizer,
            ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BACKBONE_MULTIPLIER", 0.5],
            True,
        ),
        (
            smca.d2.build_optimizer,
            ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BACKBONE_MULTIPLIER", 0.5],
            False,
        ),
        (smca.d2.build_optimizer, [], False),
        (lambda cfg, model: torch.optim.Adam(model.parameters()), [], False),
    ],
)
def test_a_loop_that_trains_with_sgd_is_told_once(build, opts, told, d2_config, caplog):
    cfg = d2_config("SOLVER.CLIP_GRADIENTS.ENABLED", False, *opts)
    model, another = build_model(cfg), build_model(cfg)
    batch = next(iter(build_detection_train_loader(cfg)))
    optimizer = build(cfg, model)
    optimizer.register_step_pre_hook(lambda *_: None)  # which is still called
    for _ in range(2):
        sum(model(batch).values()).backward()
        torch.optim.SGD(another.parameters(), lr=1.0).step()
        optimizer.step()
    assert caplog.text.count("training with SGD, which does not read") == told


def test_what_another_project_takes_from_the_package():
    for name in smca.d2.__all__:
        assert getattr(smca.d2, name) is not None
    names = set(smca.d2.__all__)
    assert {"Trainer", "Neck", "SMCADecoder", "DETRDecoder", "IntraMultiEncoder"} <= names
    for registry in (smca.d2.SMCA_ENCODER_REGISTRY, smca.d2.SMCA_DECODER_REGISTRY):
        own = {name for name, part in registry if part.__module__.startswith("smca.")}
        assert own <= names
