"""LazyConfigs are the YAML configs in another form: same model, data, optimizer and training."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.config import LazyConfig, get_cfg, instantiate  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from smca.config import ConfigError, add_smca_config, flatten, load_cfg  # noqa: E402
from smca.d2 import register_datasets  # noqa: E402
from smca.d2.dataset_mapper import build_augmentations  # noqa: E402
from smca.d2.lazy import PLACES, LazyTrainer, read, run, trainer_config  # noqa: E402
from smca.d2.trainer import Trainer  # noqa: E402
from smca.engine.prepare import prepare  # noqa: E402
from smca.errors import DatasetError  # noqa: E402
from smca.training.solver import build_lr_multiplier  # noqa: E402

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "lazy"
PROGRAM = "tools/lazyconfig_train_net.py"
NAMES = [
    file.relative_to(FOLDER).with_suffix("").as_posix()
    for file in sorted(FOLDER.rglob("*.py"))
    if file.parent.name != "common"
]
# What the tiny config of tests/conftest.py has.
TINY = """
model.backbone.depth=10 model.backbone.stem=basic model.backbone.norm=BN
model.backbone.out_features=[res4,res5] model.neck.in_channels=[32,64] model.neck.in_strides=[16,32]
model.backbone.stem_channels=8 model.backbone.res2_channels=8 model.neck.num_scales=3
model.neck.dim=32 model.decoder.num_heads=4 model.decoder.num_queries=10 model.decoder.ffn_dim=32
model.encoder.blocks=[intra,multi] model.decoder.num_layers=2
train.max_iter=6 lr_multiplier.milestones=[4] lr_multiplier.num_updates=6
dataloader.train.total_batch_size=4 train.checkpointer.period=2 train.eval_period=0
""".split()  # noqa: SIM905


@pytest.fixture(params=NAMES)
def configs(request):
    """A YAML config and the LazyConfig of the same name."""
    cfg = get_cfg()
    add_smca_config(cfg)
    load_cfg(cfg, str(ROOT / "configs" / f"{request.param}.yaml"), ["MODEL.DEVICE", "cpu"])
    return cfg, read(str(FOLDER / f"{request.param}.py"), ["train.device=cpu"])


@pytest.fixture(scope="session")
def data(shapes):
    """Overrides: the drawn shapes of these tests, in this process."""
    files = ",".join(f"[{name},{json},{root}]" for name, (json, root) in shapes.items())
    return [
        *(f"dataloader.coco_format=[{files}]", "dataloader.train.num_workers=0"),
        *("dataloader.train.dataset.names=train", "dataloader.test.dataset.names=val"),
    ]


@pytest.fixture
def tiny(data):
    """``tiny(folder, "key=value", ...)``: a trainer and its config."""

    def build(folder, *overrides):
        changes = [*TINY, *data, f"train.output_dir={folder}", *overrides]
        lazy = read(str(FOLDER / "quickstart.py"), changes)
        cfg = prepare(trainer_config(lazy))
        register_datasets(cfg)
        return LazyTrainer.of(lazy), cfg

    return build


def sample_inputs():
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for h, w in ((64, 80), (70, 50)):
        instances = Instances((h, w))
        instances.gt_boxes = Boxes(torch.tensor([[3.0, 5.0, 20.0, 40.0], [10.0, 9.0, 45.0, 60.0]]))
        instances.gt_classes = torch.tensor([0, 2])
        image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator)
        inputs.append({"image": image, "instances": instances})
    return inputs


def test_same_model_optimizer_and_schedule(configs):
    cfg, lazy = configs
    torch.manual_seed(0)
    theirs = build_model(cfg)
    torch.manual_seed(0)
    ours = LazyTrainer.of(lazy).build_model(trainer_config(lazy))

    # One seed, one start.
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert str(ours) == str(theirs)
    criteria = [dict(vars(model.criterion)) for model in (ours, theirs)]
    matchers = [vars(criterion.pop("matcher")) for criterion in criteria]
    assert criteria[0] == criteria[1]
    assert matchers[0] == matchers[1]
    assert ours.max_detections == theirs.max_detections

    # Other weights than those of the start, which are zero here and there.
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        losses = model.train()(sample_inputs())
        with torch.no_grad():
            found = model.eval()(sample_inputs())
        fields = [image["instances"].get_fields() for image in found]
        results.append(
            (losses, [{**image, "pred_boxes": image["pred_boxes"].tensor} for image in fields])
        )
    assert_close(*results, rtol=0, atol=0)

    described = []
    for trainer, config, model in (
        (Trainer, cfg, theirs),
        (LazyTrainer.of(lazy), trainer_config(lazy), ours),
    ):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        described.append(
            [
                {**group, "params": [names[id(parameter)] for parameter in group["params"]]}
                for group in trainer.build_optimizer(config, model).param_groups
            ]
        )
    assert described[0] == described[1]

    end = cfg.SOLVER.MAX_ITER
    expected, found = build_lr_multiplier(cfg), instantiate(lazy.lr_multiplier)
    looked_at = {*range(0, end, max(1, end // 500)), end - 1}
    looked_at |= {step + more for step in cfg.SOLVER.STEPS for more in range(-3, 4)}
    for iteration in sorted(looked_at):
        assert found(iteration / end) == pytest.approx(expected(iteration / end)), iteration


def test_same_settings_of_training_and_data(configs):
    cfg, lazy = configs
    expected, found = flatten(cfg), flatten(trainer_config(lazy))
    assert {key: found[key] for key in PLACES} == {key: expected[key] for key in PLACES}
    train = lazy.dataloader.train
    assert train.aspect_ratio_grouping == cfg.DATALOADER.ASPECT_RATIO_GROUPING
    assert train.num_workers == lazy.dataloader.test.num_workers == cfg.DATALOADER.NUM_WORKERS
    for part, is_train in ((train, True), (lazy.dataloader.test, False)):
        mapper = instantiate(part.mapper)
        assert mapper.is_train == is_train
        assert mapper.image_format == cfg.INPUT.FORMAT
        described = [
            str([_shown(augmentation) for augmentation in augmentations])
            for augmentations in (mapper.augmentations.augs, build_augmentations(cfg, is_train))
        ]
        assert described[0] == described[1]


def _shown(augmentation):
    """All that an augmentation has, in words; sequences of any kind as lists."""
    if isinstance(augmentation, (str, int, float, bool)):
        return augmentation
    if isinstance(augmentation, (list, tuple)) or OmegaConf.is_list(augmentation):
        return [_shown(part) for part in augmentation]
    parts = {
        name: _shown(part) for name, part in vars(augmentation).items() if name != "input_args"
    }
    return type(augmentation).__name__, parts


@pytest.mark.parametrize("name", ["smca_R50_50ep", "quickstart"])
def test_same_batches(name, data, shapes):
    cfg = get_cfg()
    add_smca_config(cfg)
    opts = ["DATASETS.COCO_FORMAT", [[split, *files] for split, files in shapes.items()]]
    opts += ["DATASETS.TRAIN", ("train",), "DATASETS.TEST", ("val",), "MODEL.SMCA.NUM_CLASSES", 3]
    opts += ["SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0]
    load_cfg(cfg, str(ROOT / "configs" / f"{name}.yaml"), opts)
    changes = [*data, "dataloader.train.total_batch_size=4", "model.heads.num_logits=3"]
    lazy = read(str(FOLDER / f"{name}.py"), changes)
    ours, theirs = (LazyTrainer.of(lazy), trainer_config(lazy)), (Trainer, cfg)
    register_datasets(cfg)
    batches = []
    for trainer, config in (ours, theirs):
        loader = trainer.build_train_loader(config)
        loader.batch_sampler.seed = 5
        stream = iter(loader)
        tests = trainer.build_test_loader(config, "val")
        batches.append([*(next(stream) for _ in range(3)), *tests])
        assert loader.num_workers == tests.num_workers == 0
    assert len(batches[0]) == len(batches[1]) == 3 + 6
    for found, expected in zip(*batches, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert one["image_id"] == other["image_id"]
            assert_close(one["image"], other["image"], rtol=0, atol=0)
            if "instances" in other:
                boxes = [sample["instances"].gt_boxes.tensor for sample in (one, other)]
                assert_close(*boxes, rtol=0, atol=0)
                assert_close(one["instances"].gt_classes, other["instances"].gt_classes)


def train(trainer, cfg, *, resume=False):
    """The last checkpoint of a run."""
    running = trainer(cfg)
    running.resume_or_load(resume=resume)
    running.train()
    return torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)


def assert_same_state(found, expected):
    assert set(found) == set(expected)
    assert_close(found["model"], expected["model"], rtol=0, atol=0)
    optimizers = [part["trainer"]["_trainer"]["optimizer"] for part in (found, expected)]
    assert_close(*(part["state"] for part in optimizers), rtol=0, atol=0)
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    assert found["trainer"]["hooks"] == expected["trainer"]["hooks"]


def go_back(source, target):
    """A copy of a finished run, as it was after the second iteration."""
    shutil.copytree(source, target)
    for name in ("model_0000003.pth", "model_final.pth", "model_best.pth"):
        (target / name).unlink()
    (target / "last_checkpoint").write_text("model_0000001.pth")
    return str(target)


def test_same_training_and_either_goes_on_with_the_others_run(d2_config, tiny, tmp_path):
    expected = train(Trainer, d2_config("OUTPUT_DIR", str(tmp_path / "yaml")))
    assert_same_state(train(*tiny(tmp_path / "lazy")), expected)

    theirs = go_back(tmp_path / "lazy", tmp_path / "yaml_goes_on")
    assert_same_state(train(Trainer, d2_config("OUTPUT_DIR", theirs), resume=True), expected)
    ours = go_back(tmp_path / "yaml", tmp_path / "lazy_goes_on")
    assert_same_state(train(*tiny(ours), resume=True), expected)


@pytest.mark.slow
def test_the_program(d2_config, data, program, tmp_path):
    out = tmp_path / "out"
    lazy = ["--config-file", FOLDER / "quickstart.py"]
    changes = [*TINY, *data, "model.heads.num_logits=0"]
    program(PROGRAM, *lazy, *changes, f"train.output_dir={out}").done()
    parts = go_back(out, tmp_path / "parts")
    program(PROGRAM, *lazy, "--resume", *changes, f"train.output_dir={parts}").done()
    expected = train(Trainer, d2_config("OUTPUT_DIR", str(tmp_path / "yaml")))
    for folder in (out, tmp_path / "parts"):
        assert_same_state(torch.load(folder / "model_final.pth", weights_only=True), expected)

    # The run's own file is a LazyConfig, in which all has been filled in.
    config = out / "config.yaml"
    before = config.read_bytes()
    assert LazyConfig.load(str(config)).model.heads.num_logits == 3
    results = out / "inference" / "coco_instances_results.json"
    written = results.read_bytes()
    results.unlink()
    weights = f"train.init_checkpoint={out}/model_final.pth"
    printed = program(PROGRAM, "--config-file", config, "--eval-only", weights).done()
    assert "Average Precision" in printed
    assert results.read_bytes() == written
    assert config.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.max_itr=5"], "'train.max_itr=5' cannot be set.*Key 'max_itr' is not in struct"),
        (["dataloader.tain.num_workers=0"], "Key 'tain' is not in struct"),
        (["SOLVER.MAX_ITER", "5"], "changes are path.key=value"),
        (["train.max_iter=0"], "train.max_iter is 0; it must be at least 1"),
        (["train.max_iter=many"], "train.max_iter"),
        (["dataloader.train.dataset.names=nothing"], "unknown dataset 'nothing'"),
    ],
)
def test_changes_that_cannot_work(changes, message, tmp_path):
    arguments = {"num_gpus": None, "num_machines": None, "machine_rank": None, "dist_url": "auto"}
    opts = [f"train.output_dir={tmp_path}", "dataloader.coco_format=[[shapes_val,a,b]]", *changes]
    args = argparse.Namespace(
        config_file=str(FOLDER / "quickstart.py"),
        opts=opts,
        eval_only=False,
        resume=False,
        **arguments,
    )
    with pytest.raises((ConfigError, DatasetError), match=message):
        run(args)


def test_classes_that_are_not_the_datas(tiny, tmp_path):
    trainer, cfg = tiny(tmp_path / "out", "model.heads.num_logits=5")
    with pytest.raises(DatasetError, match="NUM_CLASSES is 5, but dataset 'val' has 3 classes"):
        trainer(cfg)


@pytest.mark.parametrize("name", ["nothing.py", "../quickstart.yaml"])
def test_files_that_are_no_lazy_configs(name):
    with pytest.raises(ConfigError, match="does not exist|no LazyConfig"):
        read(str(FOLDER / name), [])


def test_arguments_may_be_added_to_a_part():
    lazy = read(str(FOLDER / "smca_R50_50ep.py"), ["model.decoder.beta=4.0"])
    assert instantiate(lazy.model.decoder).layers[0].prior.beta == 4.0


def test_every_key_of_train_has_a_reader():
    keys = flatten(
        OmegaConf.to_container(LazyConfig.load(str(FOLDER / "common" / "train.py")).train)
    )
    read_here = {place.removeprefix("train.") for place in PLACES.values()}
    # Detectron2's default_setup reads these.
    assert set(keys) <= read_here | {"cudnn_benchmark", "float32_precision"}
