"""LazyConfigs in a project of Detectron2's kind, whose parts Detectron2's own trainer runs."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import LazyConfig, instantiate  # noqa: E402
from detectron2.engine import SimpleTrainer, default_writers, hooks  # noqa: E402
from detectron2.engine.defaults import create_ddp_model  # noqa: E402
from detectron2.evaluation import inference_on_dataset  # noqa: E402
from lazy_configs import FOLDER, TINY  # noqa: E402

from smca.errors import ConfigError  # noqa: E402


@pytest.fixture
def lazy(theirs, tmp_path):
    """``lazy("key=value", ...)``: the quickstart's LazyConfig, on datasets that Detectron2 has."""

    def load(*changes):
        data = ["dataloader.train.num_workers=0", f"train.output_dir={tmp_path}/out"]
        data += ["dataloader.train.dataset.names=theirs_train"]
        data += ["dataloader.test.dataset.names=theirs_val"]
        config = LazyConfig.load(str(FOLDER / "quickstart.py"))
        return LazyConfig.apply_overrides(config, [*TINY, *data, *changes])

    return load


def train(lazy, *, resume=False):
    """Train as Detectron2's LazyConfigs are trained, with no part of this project's trainer."""
    model = instantiate(lazy.model).to(lazy.train.device)
    lazy.optimizer.params.model = model
    optimizer = instantiate(lazy.optimizer)
    trainer = SimpleTrainer(
        create_ddp_model(model, **lazy.train.ddp), instantiate(lazy.dataloader.train), optimizer
    )
    checkpointer = DetectionCheckpointer(model, lazy.train.output_dir, trainer=trainer)

    def evaluate():
        loader, evaluator = lazy.dataloader.test, lazy.dataloader.evaluator
        return inference_on_dataset(model, instantiate(loader), instantiate(evaluator))

    writers = default_writers(lazy.train.output_dir, lazy.train.max_iter)
    trainer.register_hooks(
        [
            hooks.LRScheduler(scheduler=instantiate(lazy.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **lazy.train.checkpointer),
            hooks.EvalHook(lazy.train.eval_period, evaluate),
            hooks.PeriodicWriter(writers, period=lazy.train.log_period),
        ]
    )
    checkpointer.resume_or_load(lazy.train.init_checkpoint, resume=resume)
    trainer.train(trainer.iter + 1 if resume else 0, lazy.train.max_iter)
    return optimizer, trainer.storage.latest()


def test_a_lazy_config_trains_clips_evaluates_and_resumes(lazy, tmp_path):
    optimizer, scalars = train(lazy())
    assert optimizer.grad_norm > 0.1
    norm = torch.nn.utils.get_total_norm(
        [p.grad for group in optimizer.param_groups for p in group["params"]]
    )
    assert norm == pytest.approx(0.1, rel=1e-3)
    assert "bbox/AP" in scalars
    Path(tmp_path, "out", "last_checkpoint").write_text("model_0000003.pth")
    optimizer, _ = train(lazy(), resume=True)
    assert {int(part["step"]) for part in optimizer.state.values()} == {6}


def test_clipping_is_switched_off_in_the_same_place(lazy):
    config = lazy("train.clip_grad.enabled=False", "train.max_iter=1")
    optimizer, _ = train(config)
    assert not hasattr(optimizer, "grad_norm")


def test_classes_that_nobody_counts_are_refused(lazy):
    with pytest.raises(ConfigError, match="num_logits is 0; it must be at least 1"):
        instantiate(lazy("model.heads.num_logits=0").model)
