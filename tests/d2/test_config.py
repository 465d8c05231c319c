"""The two hosts have the same keys, the same defaults and the same learning rates."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg as detectron2_cfg  # noqa: E402
from detectron2.solver import build_lr_scheduler  # noqa: E402

import smca  # noqa: E402
from smca.config import ConfigError, flatten, load_cfg  # noqa: E402
from smca.config.keys import DETECTRON2_ONLY  # noqa: E402
from smca.training.solver import build_lr_multiplier  # noqa: E402


def both():
    theirs = detectron2_cfg()
    smca.add_smca_config(theirs)
    return smca.get_cfg(), theirs


def test_shared_keys_have_detectron2s_defaults():
    ours, theirs = map(flatten, both())
    assert ours == {key: theirs.get(key, "missing in Detectron2") for key in ours}


def test_every_other_key_is_known_as_detectron2s():
    ours, theirs = map(flatten, both())
    groups = {key: {key.rsplit(".", n)[0] for n in range(key.count(".") + 1)} for key in theirs}
    strangers = [key for key in theirs if key not in ours and not groups[key] & DETECTRON2_ONLY]
    assert not strangers
    assert not DETECTRON2_ONLY & set(ours)


def test_a_config_that_detectron2_dumped_is_read(tmp_path):
    ours, theirs = both()
    theirs.SOLVER.BASE_LR = 0.5
    theirs.MODEL.ROI_HEADS.NUM_CLASSES = 7
    path = tmp_path / "config.yaml"
    path.write_text(theirs.dump())
    load_cfg(ours, str(path))
    assert ours.SOLVER.BASE_LR == 0.5
    assert "ROI_HEADS" not in ours.MODEL


def test_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL:\n  SMCA:\n    NUM_QUERYS: 7\n")
    with pytest.raises(ConfigError, match="MODEL.SMCA.NUM_QUERYS.*NUM_QUERIES"):
        load_cfg(both()[1], str(path))


@pytest.mark.parametrize(
    "changes",
    [
        ["WARMUP_ITERS", 0],
        ["WARMUP_ITERS", 10, "STEPS", (20, 30)],
        ["WARMUP_ITERS", 10, "WARMUP_METHOD", "constant", "STEPS", (5, 60)],
        ["WARMUP_ITERS", 10, "RESCALE_INTERVAL", True, "STEPS", (20,)],
        ["LR_SCHEDULER_NAME", "WarmupCosineLR", "WARMUP_ITERS", 7, "BASE_LR_END", 0.01],
    ],
)
def test_learning_rates(changes):
    ours, theirs = both()
    for cfg in (ours, theirs):
        cfg.SOLVER.MAX_ITER = 40
        cfg.SOLVER.BASE_LR = 0.1
        cfg.SOLVER.merge_from_list(changes)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = build_lr_scheduler(theirs, optimizer)
    multiplier = build_lr_multiplier(ours)
    for iteration in range(40):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * multiplier(iteration / 40))
        optimizer.step()
        scheduler.step()
