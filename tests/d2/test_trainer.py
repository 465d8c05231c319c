"""Training in this process: the same curve after a resume, mixed precision, the best model."""

import logging
import os
import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.engine import hooks  # noqa: E402

from smca.config import ConfigError  # noqa: E402
from smca.d2.trainer import Trainer  # noqa: E402

RANDOM = ["MODEL.SMCA.DROPOUT", 0.1, "MODEL.SMCA.ATTENTION_DROPOUT", 0.1]
RANDOM += ["INPUT.MIN_SIZE_TRAIN", (64, 96)]
AVERAGE = ["MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", 0.3]


class Recorder(hooks.HookBase):
    """Losses and learning rate of each iteration; ``interrupt`` runs after one of them."""

    def __init__(self, interrupt_after=None, interrupt=None):
        self.curve = {}
        self.interrupt_after, self.interrupt = interrupt_after, interrupt

    def after_step(self):
        values = {name: value for name, (value, _) in self.trainer.storage.latest().items()}
        kept = {k: v for k, v in values.items() if "loss" in k}
        kept["lr"] = self.trainer.optimizer.param_groups[0]["lr"]
        self.curve[self.trainer.iter] = kept
        if self.trainer.iter == self.interrupt_after:
            self.interrupt()


def train(cfg, *, resume=False, **arguments):
    trainer = Trainer(cfg)
    recorder = Recorder(**arguments)
    trainer.register_hooks([recorder])
    trainer.resume_or_load(resume=resume)
    try:
        trainer.train()
    except (SystemExit, KeyboardInterrupt) as stop:
        return recorder.curve, stop
    return recorder.curve, trainer


def final_state(output_dir):
    return torch.load(Path(output_dir) / "model_final.pth", weights_only=True)


def crash():
    raise KeyboardInterrupt


def test_a_resumed_run_has_the_curve_of_an_uninterrupted_one(d2_config, tmp_path):
    whole, trainer = train(d2_config(*RANDOM, "OUTPUT_DIR", str(tmp_path / "whole")))
    assert trainer.start_iter == 0
    assert len({values["total_loss"] for values in whole.values()}) == 6
    cfg = d2_config(*RANDOM, "OUTPUT_DIR", str(tmp_path / "parts"))
    # Crashed after iteration 2, of which no checkpoint knows; then asked to stop after 4.
    first, _ = train(cfg, interrupt_after=2, interrupt=crash)
    torch.manual_seed(123)
    second, stop = train(
        cfg, resume=True, interrupt_after=3, interrupt=lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert stop.code == 143
    assert (tmp_path / "parts/last_checkpoint").read_text() == "model_0000004.pth"
    third, _ = train(cfg, resume=True)
    assert [list(part) for part in (first, second, third)] == [[0, 1, 2], [2, 3], [5]]
    # The hook that records stands after the one that stops.
    del whole[4]
    assert {**first, **second, **third} == whole

    expected, found = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    states = [state["trainer"]["_trainer"]["optimizer"] for state in (found, expected)]
    torch.testing.assert_close(*(state["state"] for state in states), rtol=0, atol=0)
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert found["trainer"]["hooks"] == expected["trainer"]["hooks"]


def test_a_resumed_average_is_that_of_an_uninterrupted_run(d2_config, tmp_path):
    train(d2_config(*RANDOM, *AVERAGE, "OUTPUT_DIR", str(tmp_path / "whole")))
    cfg = d2_config(*RANDOM, *AVERAGE, "OUTPUT_DIR", str(tmp_path / "parts"))
    train(cfg, interrupt_after=2, interrupt=crash)
    _, trainer = train(cfg, resume=True)
    expected, found = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    for key in ("model", "ema"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
    assert expected["ema"].keys() == expected["model"].keys()
    name = "neck.projections.0.weight"
    assert not torch.equal(expected["ema"][name], expected["model"][name])
    assert trainer.iterations.clock.iterations == 6


def test_pictures_change_nothing_and_norms_are_read_for_lines_alone(d2_config, tmp_path):
    without, trainer = train(d2_config(*RANDOM, "OUTPUT_DIR", str(tmp_path / "without")))
    shown = d2_config(*RANDOM, "VIS_PERIOD", 1, "OUTPUT_DIR", str(tmp_path / "with"))
    assert train(shown)[0] == without
    found, expected = (final_state(tmp_path / name) for name in ("with", "without"))
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    ((norm, iteration),) = trainer.storage.history("grad_norm").values()
    assert norm > 0 and iteration == 5


def test_layout_of_a_checkpoint(d2_config, tmp_path):
    train(d2_config("SOLVER.MAX_ITER", 2))
    content = final_state(tmp_path / "out")
    assert set(content) == {"model", "trainer", "iteration", "class_names", "query_groups"}
    trainer = content["trainer"]
    assert set(trainer) == {"iteration", "hooks", "_trainer", "seed", "clock"}
    assert trainer["clock"]["iterations"] == 2 and trainer["clock"]["seconds"] > 0
    assert set(trainer["_trainer"]) == {"iteration", "optimizer", "grad_scaler"}
    assert set(trainer["hooks"]) == {"LRScheduler", "BestCheckpointer"}
    assert trainer["iteration"] == trainer["_trainer"]["iteration"] == content["iteration"] == 1
    assert trainer["hooks"]["LRScheduler"]["last_epoch"] == 2


def test_a_drawn_seed_is_kept(d2_config):
    cfg = d2_config("SEED", -1, "SOLVER.MAX_ITER", 4)
    _, first = train(cfg, interrupt_after=1, interrupt=crash)
    drawn = torch.load(Path(cfg.OUTPUT_DIR) / "model_0000001.pth")["trainer"]["seed"]
    trainer = Trainer(cfg)
    assert trainer.iterations.seed != drawn
    trainer.resume_or_load(resume=True)
    assert trainer.iterations.seed == drawn
    assert trainer._trainer.data_loader.batch_sampler.seed == drawn


def test_mixed_precision_on_a_cpu(d2_config):
    exact, _ = train(d2_config())
    mixed, trainer = train(d2_config("SOLVER.AMP.ENABLED", True))
    assert trainer.model.training
    assert mixed != exact
    for iteration, values in exact.items():
        assert mixed[iteration]["total_loss"] == pytest.approx(values["total_loss"], rel=0.05)


def test_a_loss_that_is_not_finite_saves_the_state_before(d2_config, tmp_path):
    cfg = d2_config("SOLVER.CHECKPOINT_PERIOD", 100)
    trainer = Trainer(cfg)

    def poison():
        parameter = trainer.model.heads.box_head[-1].bias
        with torch.no_grad():
            parameter.fill_(torch.nan)

    recorder = Recorder(1, poison)
    trainer.register_hooks([recorder])
    message = r"iteration 2: loss_l1_0.*of the images \[.*model_nonfinite_0000002.pth"
    with pytest.raises(FloatingPointError, match=message) as caught:
        trainer.train()
    assert "loss_class" not in str(caught.value)
    content = torch.load(tmp_path / "out/model_nonfinite_0000002.pth", weights_only=True)
    assert content["iteration"] == content["trainer"]["iteration"] == 1
    assert not (tmp_path / "out/last_checkpoint").exists()


def test_the_best_model_is_kept_over_a_resume(d2_config, tmp_path, monkeypatch):
    # Each resume begins with the evaluation that the run may have ended in.
    precision = iter([30.0, 30.0, 20.0, 10.0, 10.0, 40.0])
    monkeypatch.setattr(
        Trainer, "test", classmethod(lambda cls, cfg, model: {"bbox": {"AP": next(precision)}})
    )
    out = tmp_path / "out"

    def best():
        content = torch.load(out / "model_best.pth", weights_only=True)
        hook = content["trainer"]["hooks"]["BestCheckpointer"]
        assert hook["best_iter"] == content["iteration"]
        return hook["best_iter"], hook["best_metric"]

    cfg = d2_config("TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 8)
    # The checkpoint after iteration 1 is older than the evaluation there.
    train(cfg, interrupt_after=2, interrupt=crash)
    assert best() == (1, 30.0)
    assert (out / "last_checkpoint").read_text() == "model_0000001.pth"
    train(cfg, resume=True, interrupt_after=6, interrupt=crash)
    assert best() == (1, 30.0)
    train(cfg, resume=True)
    assert best() == (7, 40.0)


def test_a_finished_run_is_only_evaluated_again(d2_config, tmp_path):
    cfg = d2_config("SOLVER.MAX_ITER", 2)
    train(cfg)
    (tmp_path / "out/inference/coco_instances_results.json").unlink()
    curve, trainer = train(cfg, resume=True)
    assert curve == {}
    assert trainer.iter == 2
    assert (tmp_path / "out/inference/coco_instances_results.json").exists()


def test_loader_processes_change_nothing(d2_config):
    alone, _ = train(d2_config(*RANDOM))
    helped, _ = train(d2_config(*RANDOM, "DATALOADER.NUM_WORKERS", 2))
    assert helped == alone


def test_a_trainer_is_heard_in_a_plain_script(d2_config, loggers, monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    train(d2_config("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()))
    printed = capsys.readouterr().out
    assert "smca.engine.report]: results written to" in printed
    assert "Starting training from iteration 0" in printed


def test_an_unreadable_image_is_passed_over(d2_config, shapes, caplog, tmp_path):
    train_json, folder = shapes["train"]
    copies = tmp_path / "images"
    copies.mkdir()
    for path in Path(folder).iterdir():
        (copies / path.name).write_bytes(path.read_bytes()[: 200 if "003" in path.name else None])
    datasets = [["train", train_json, str(copies)], ["val", *shapes["val"]]]
    with caplog.at_level(logging.WARNING):
        curve, _ = train(d2_config("DATASETS.COCO_FORMAT", datasets))
    assert len(curve) == 6
    assert caplog.text.count("000003.png") == 1


def test_batches_that_cannot_be_shared_out(d2_config, monkeypatch):
    monkeypatch.setattr("smca.data.loader.world_size", lambda: 3)
    with pytest.raises(ConfigError, match="SOLVER.IMS_PER_BATCH is 4"):
        Trainer.build_train_loader(d2_config())
