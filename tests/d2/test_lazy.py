"""LazyConfigs are the YAML configs in another form: same model, data, optimizer and training."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("detectron2")

from detectron2.config import get_cfg, instantiate  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from smca.config import add_smca_config, flatten, load_cfg  # noqa: E402
from smca.d2 import register_datasets  # noqa: E402
from smca.d2.dataset_mapper import build_augmentations  # noqa: E402
from smca.d2.lazy import PLACES, LazyTrainer, read, trainer_config  # noqa: E402
from smca.d2.trainer import Trainer  # noqa: E402
from smca.training.solver import build_lr_multiplier  # noqa: E402

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "lazy"
NAMES = [
    file.relative_to(FOLDER).with_suffix("").as_posix()
    for file in sorted(FOLDER.rglob("*.py"))
    if file.parent.name != "common"
]
QUICK = ("quickstart", "smca_R50_50ep")


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def configs(request):
    """A YAML config and the LazyConfig of the same name."""
    cfg = get_cfg()
    add_smca_config(cfg)
    load_cfg(cfg, str(ROOT / "configs" / f"{request.param}.yaml"), ["MODEL.DEVICE", "cpu"])
    return cfg, read(str(FOLDER / f"{request.param}.py"), ["train.device=cpu"])


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
def test_same_batches(name, lazy_data, shapes):
    cfg = get_cfg()
    add_smca_config(cfg)
    opts = ["DATASETS.COCO_FORMAT", [[split, *files] for split, files in shapes.items()]]
    opts += ["DATASETS.TRAIN", ("train",), "DATASETS.TEST", ("val",), "MODEL.SMCA.NUM_CLASSES", 3]
    opts += ["SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0]
    load_cfg(cfg, str(ROOT / "configs" / f"{name}.yaml"), opts)
    changes = [*lazy_data, "dataloader.train.total_batch_size=4", "model.heads.num_logits=3"]
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
