"""Tensors that training does not change are loaded, or training is refused."""

import pytest
import torch
from engines import needs_detectron2

from smca.checkpoints import SafeCheckpointing
from smca.checkpoints.loading import frozen_tensors
from smca.config import ConfigError
from smca.modeling import build_detector

# FrozenBN freezes the batch norms of all stages.
FROZEN = [
    ("FrozenBN", 2, {"stem", "res2", "res3", "res4", "res5"}),
    ("FrozenBN", 0, {"stem", "res2", "res3", "res4", "res5"}),
    ("BN", 2, {"stem", "res2"}),
    ("GN", 1, {"stem"}),
    ("GN", 0, set()),
    ("", 0, set()),
]


@pytest.fixture
def build(tiny_config):
    def detector(norm, freeze_at):
        norms = ("MODEL.RESNETS.NORM", norm, "MODEL.BACKBONE.FREEZE_AT", freeze_at)
        return build_detector(tiny_config(*norms))

    return detector


def stages(names):
    return {name.split(".")[1] for name in names}


@pytest.mark.parametrize(("norm", "freeze_at", "expected"), FROZEN)
def test_what_is_frozen_is_found(build, norm, freeze_at, expected):
    """By a step with a gradient in everything that has one."""
    detector = build(norm, freeze_at).train()
    begun = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    detector.backbone(torch.randn(2, 3, 64, 64))  # batch norms count
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(trained, lr=1.0).step()
    unchanged = [
        name
        for name, tensor in detector.state_dict().items()
        if torch.equal(tensor, begun[name]) and name.startswith("backbone.")
    ]
    assert set(frozen_tensors(detector)) == set(unchanged)
    assert stages(unchanged) == expected


@pytest.mark.parametrize(("norm", "freeze_at", "expected"), FROZEN)
def test_random_weights_that_are_frozen_are_refused(build, tmp_path, norm, freeze_at, expected):
    detector = build(norm, freeze_at)
    checkpointer = SafeCheckpointing(detector, str(tmp_path))
    if not expected:
        checkpointer.resume_or_load("", resume=False)
        return
    remedies = (
        r"MODEL\.WEIGHTS is empty.*set MODEL\.WEIGHTS to .*or both MODEL\.BACKBONE\.FREEZE_AT "
    )
    with pytest.raises(ConfigError, match=remedies + r"0 and MODEL\.RESNETS\.NORM 'GN'"):
        checkpointer.resume_or_load("", resume=True)
    SafeCheckpointing(detector, freeze_random=True).resume_or_load("", resume=False)
    # A file that has them all is taken, and a run goes on.
    checkpointer.save("whole")
    checkpointer.resume_or_load(str(tmp_path / "whole.pth"), resume=False)
    checkpointer.resume_or_load("", resume=True)


def test_a_file_that_lacks_a_frozen_stage_is_refused(build, tmp_path):
    detector = build("BN", 2)
    state = detector.state_dict()
    checkpointer = SafeCheckpointing(detector)
    for lacking, refused in (("backbone.res2.0.conv1", True), ("backbone.res5", False)):
        part = {name: tensor for name, tensor in state.items() if not name.startswith(lacking)}
        torch.save({"model": part}, tmp_path / "part.pth")
        if refused:
            with pytest.raises(ConfigError, match=rf"part\.pth leaves random .*: {lacking}\.norm"):
                checkpointer.resume_or_load(str(tmp_path / "part.pth"), resume=False)
        else:
            checkpointer.resume_or_load(str(tmp_path / "part.pth"), resume=False)


@needs_detectron2
@pytest.mark.parametrize("backbone", ["build_smca_resnet_backbone", "build_resnet_backbone"])
def test_it_is_found_in_detectron2s_models(tiny_config, backbone):
    from detectron2.modeling import build_model

    from smca.d2.predictor import Detectron2Host

    options = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    options += ("MODEL.BACKBONE.NAME", backbone, "MODEL.RESNETS.NORM", "BN")
    options += ("MODEL.BACKBONE.FREEZE_AT", 2)
    cfg = Detectron2Host.read(tiny_config(*options))
    assert stages(frozen_tensors(build_model(cfg))) == {"stem", "res2"}
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    assert not frozen_tensors(build_model(cfg))
