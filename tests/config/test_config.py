"""Configs: the table of keys, and how values that cannot work are refused."""

import re
from pathlib import Path

import pytest

import smca
from smca.config import KEYS, ConfigError, flatten, load_cfg, validate, validate_model
from smca.config.model_keys import MODEL_KEYS
from smca.config.run_keys import RUN_KEYS
from smca.engine.prepare import prepare

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid(path):
    validate(load_cfg(smca.get_cfg(), str(path)))


def test_the_table_has_every_key_once():
    flat = flatten(smca.get_cfg())
    assert not MODEL_KEYS.keys() & RUN_KEYS.keys()
    assert {key: row.default for key, row in KEYS.items()} == flat
    for module in ("model_keys", "run_keys"):
        source = (ROOT / f"projects/SMCA/smca/config/{module}.py").read_text()
        groups = re.findall(r'group\(\s*"(.*?)"', source)
        assert len(set(groups)) == len(groups)


def test_configs_do_not_share_their_lists():
    one, other = smca.get_cfg(), smca.get_cfg()
    one.MODEL.SMCA.IN_FEATURES.append("res6")
    assert other.MODEL.SMCA.IN_FEATURES == ["res4", "res5"]


def test_every_key_has_a_reader():
    """Each key of the config is read somewhere outside of its definition."""
    package = ROOT / "projects/SMCA/smca"
    sources = "".join(
        path.read_text()
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in ("config", "d2")
    )
    # Read by Detectron2, or by what configs are merged with.
    elsewhere = {"VERSION", "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"}
    # Read as what must be so, in `validate`.
    elsewhere |= {"INPUT.CROP.TYPE", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"}
    elsewhere |= {"DATALOADER.SAMPLER_TRAIN", "MODEL.MASK_ON", "MODEL.KEYPOINT_ON"}
    elsewhere |= {"MODEL.LOAD_PROPOSALS"}
    idle = [
        key
        for key in flatten(smca.get_cfg())
        if key not in elsewhere and not re.search(rf"\b{key.split('.')[-1]}\b", sources)
    ]
    assert not idle


def test_unknown_keys_are_named_with_the_nearest(tmp_path):
    file = tmp_path / "typo.yaml"
    file.write_text("VERSION: 2\nMODEL:\n  SMCA:\n    NUM_QUERYS: 10\n")
    with pytest.raises(ConfigError, match=r"MODEL\.SMCA\.NUM_QUERYS in .*typo\.yaml.*NUM_QUERIES"):
        load_cfg(smca.get_cfg(), str(file))
    with pytest.raises(ConfigError, match=r"SOLVER\.BASE_RL in the command line.*BASE_LR"):
        load_cfg(smca.get_cfg(), opts=["SOLVER.BASE_RL", "1"])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER"], "no value"),
        (["MODEL.SMCA", "3"], "MODEL.SMCA"),
    ],
)
def test_wrong_options_are_named(opts, message):
    with pytest.raises(ConfigError, match=message):
        load_cfg(smca.get_cfg(), opts=opts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.LR_SCHEDULER_NAME", "Constant"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
        ("INPUT.CROP.SIZE", [600, 384]),
        ("INPUT.CROP.TYPE", "relative"),
        ("INPUT.FORMAT", "HSV"),
        ("INPUT.RANDOM_FLIP", "both"),
        ("INPUT.MIN_SIZE_TRAIN", ()),
        ("DATASETS.COCO_FORMAT", [["a", "b.json"]]),
        ("MODEL.SMCA.LOSS.L1_WEIGHT", -1.0),
        ("MODEL.PIXEL_MEAN", [1.0]),
        ("VIS_PERIOD", -1),
        ("MODEL.SMCA.IN_FEATURES", [["res5"]]),
        ("MODEL.SMCA.ENCODER.BLOCKS", [["intra"]]),
        ("MODEL.PIXEL_MEAN", [0.0, "0", 0.0]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, float("inf")]),
        ("MODEL.SMCA.NECK.POSITION_OFFSET", "nan"),
        ("INPUT.MIN_SIZE_TRAIN", ("800",)),
        ("INPUT.MIN_SIZE_TRAIN", (None,)),
        ("INPUT.MIN_SIZE_TRAIN", (0.5,)),
        ("INPUT.CROP.SIZE", [0.5, 0.9]),
        ("INPUT.CROP.SIZE", ["384", "600"]),
        ("INPUT.CROP.MIN_SIZE_BEFORE", (True,)),
        ("DATASETS.TEST", (None,)),
        ("DATASETS.COCO_FORMAT", [1]),
        ("SOLVER.STEPS", ("4",)),
        ("SOLVER.STEPS", ([4],)),
        ("SOLVER.BASE_LR", "inf"),
        ("SOLVER.MOMENTUM", -0.5),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 0),
        ("TEST.MAX_DETS_PER_IMAGE", 9),
    ],
)
def test_impossible_values_are_named(config, key, value):
    with pytest.raises(ConfigError, match=re.escape(key)):
        validate(config("smca_R50_50ep", key, value))


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("MODEL.EMA", "DECAY", 1.0),
        ("SOLVER.AMP", "PRECISION", "float8"),
        ("SOLVER.CLIP_GRADIENTS", "CLIP_TYPE", "value"),
        ("SOLVER.CLIP_GRADIENTS", "CLIP_VALUE", 0.0),
        ("INPUT.CROP", "TYPE", "relative_range"),
        ("INPUT.CROP", "MIN_SIZE_BEFORE", ()),
    ],
)
def test_keys_are_checked_where_they_are_enabled(config, group, key, value):
    changes = (f"{group}.{key}", value, f"{group}.ENABLED")
    validate(config("smca_R50_50ep", *changes, False))
    with pytest.raises(ConfigError, match=rf"^{group}\.{key} is "):
        validate(config("smca_R50_50ep", *changes, True))


@pytest.mark.parametrize("key", [key for key, row in KEYS.items() if type(row.default) is float])
def test_no_number_may_be_nan(config, key):
    enabled = f"{key.rpartition('.')[0]}.ENABLED"
    changes = (enabled, True) if enabled in KEYS else ()
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)} is nan; it must be "):
        validate(config("smca_R50_50ep", *changes, key, "nan"))


def test_a_range_of_sizes_goes_from_the_least_to_the_most(config):
    in_range = ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN"]
    validate(config("smca_R50_50ep", *in_range, (400, 800)))
    with pytest.raises(ConfigError, match=r"INPUT\.MIN_SIZE_TRAIN is \(800, 400\)"):
        validate(config("smca_R50_50ep", *in_range, (800, 400)))


def test_deviations_of_pixels_from_0_to_1_are_refused(config):
    with pytest.raises(ConfigError, match=r"MODEL\.PIXEL_STD is \[0\.229.*pixels from 0 to 255"):
        validate(config("smca_R50_50ep", "MODEL.PIXEL_STD", [0.229, 0.224, 0.225]))


def test_a_limit_of_the_evaluation_needs_as_many_detections(config):
    limit, kept = "TEST.MAX_DETS_PER_IMAGE", "TEST.DETECTIONS_PER_IMAGE"
    for values in ((100, 6), (50, 20), (300, 300), (300, 500)):
        validate(config("smca_R50_50ep", limit, values[0], kept, values[1]))
    told = rf"{limit} is 300; it must be at most {kept} \(200\), which is to be raised as well"
    with pytest.raises(ConfigError, match=told):
        validate(config("smca_R50_50ep", limit, 300, kept, 200))


def test_classes_are_counted_where_a_run_starts_and_nowhere_else(config, tmp_path, capsys):
    output = ("OUTPUT_DIR", str(tmp_path))
    cfg = config("smca_R50_50ep", "MODEL.SMCA.NUM_CLASSES", 0, *output)
    validate(cfg)
    with pytest.raises(ConfigError, match=r"MODEL\.SMCA\.NUM_CLASSES is 0.* at least 1 to build"):
        validate_model(cfg)
    assert prepare(cfg).MODEL.SMCA.NUM_CLASSES == 80
    told = "MODEL.SMCA.NUM_CLASSES: 80, as in dataset 'coco_2017_train': person, "
    assert capsys.readouterr().err.count(told) == 1
    validate_model(cfg)
    cfg = config("smca_R50_50ep", "MODEL.SMCA.NUM_CLASSES", -1)
    with pytest.raises(ConfigError, match=r"MODEL\.SMCA\.NUM_CLASSES is -1"):
        validate(cfg)


def test_yaml_runs_no_code(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConfigError, match="evil.yaml"):
        load_cfg(smca.get_cfg(), str(file))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["MODEL: [1, 2\n", "just text\n", "MODEL: 3\n"])
def test_files_that_are_no_config_are_named(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="broken.yaml|MODEL"):
        load_cfg(smca.get_cfg(), str(file))
    with pytest.raises(ConfigError, match="missing.yaml"):
        load_cfg(smca.get_cfg(), str(tmp_path / "missing.yaml"))
