"""Configs of other projects: what only their training reads stops no prediction."""

import pytest
from PIL import Image
from torch.testing import assert_close

import smca
from smca.checkpoints import write_checkpoint
from smca.config import ConfigError
from smca.modeling import build_detector

# A file of another project, over one of ours: nothing in it says how to detect.
TRAINED_ELSEWHERE = """
SOLVER: {LR_SCHEDULER_NAME: WarmupPolyLR, MY_KEY: 3, STEPS: none, CLIP_GRADIENTS: {ENABLED: true}}
INPUT: {CROP: {ENABLED: true, MODE: x}, MIN_SIZE_TRAIN: [], MIN_SIZE_TRAIN_MINE: 3}
DATALOADER: {SAMPLER_TRAIN: RepeatFactorTrainingSampler, MINE: 1}
TEST: {AUG: {ENABLED: true}, EVAL_PERIOD: -3, MINE: 1}
MODEL: {MASK_ON: true}
"""


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (TRAINED_ELSEWHERE, None),
        ("INPUT: {MIN_SIZE_TSET: 64}", "INPUT.MIN_SIZE_TSET.*MIN_SIZE_TEST"),
        ("INPUT: {MIN_SIZE_TEST: -1}", "INPUT.MIN_SIZE_TEST is -1"),
        ("TEST: {DETECTIONS_PER_IMAGE: 0}", "TEST.DETECTIONS_PER_IMAGE"),
        ("MODEL: {SMCA: {NUM_QUERYS: 10}}", "MODEL.SMCA.NUM_QUERYS"),
    ],
)
def test_keys_of_training_alone_stop_no_prediction(
    change, refused, engine, config_file, tiny_config, tmp_path
):
    weights, file = tmp_path / "model.pth", tmp_path / "theirs.yaml"
    write_checkpoint({"model": build_detector(tiny_config()).state_dict()}, weights)
    base = config_file()
    file.write_text(f"_BASE_: {base}\n{change}")
    image = Image.new("RGB", (50, 40), "red")
    if refused:
        with pytest.raises(ConfigError, match=refused):
            smca.Predictor(file, weights, engine=engine)
        return
    found = smca.Predictor(file, weights, engine=engine)(image)
    expected = smca.Predictor(base, weights, engine=engine)(image)
    assert_close(found.boxes, expected.boxes, rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"^SOLVER\.STEPS"):
        smca.config.load_cfg(smca.get_cfg(), str(file))
