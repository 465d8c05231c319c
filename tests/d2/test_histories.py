"""The scalars that the trainer keeps."""

import pytest

pytest.importorskip("detectron2")

from detectron2.engine import HookBase  # noqa: E402

from smca.d2 import trainer  # noqa: E402


class Losses(HookBase):
    """Keeps the loss of each iteration."""

    def __init__(self):
        self.all = []

    def after_step(self):
        self.all.append(self.trainer.storage.latest()["total_loss"][0])


def test_scalars_are_forgotten_and_their_means_are_not(d2_config, monkeypatch):
    monkeypatch.setattr(trainer, "KEPT", 5)
    training = trainer.Trainer(d2_config("SOLVER.MAX_ITER", 45, "TEST.EVAL_PERIOD", 0))
    losses = Losses()
    training.register_hooks([losses])
    training.resume_or_load(resume=False)
    training.train()
    histories = training.storage.histories()
    assert {"total_loss", "loss_l1", "time", "data_time", "lr"} <= set(histories)
    assert all(len(history.values()) <= 5 for history in histories.values())
    kept = [(loss, iteration) for iteration, loss in enumerate(losses.all)][-5:]
    assert histories["total_loss"].values() == kept
    assert histories["total_loss"].global_avg() == pytest.approx(sum(losses.all) / 45)
