"""A project's own Trainer: what it overrides counts, as with Detectron2's DefaultTrainer."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.data import build_detection_train_loader  # noqa: E402
from detectron2.engine import hooks  # noqa: E402
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators  # noqa: E402

from smca.d2 import DetrDatasetMapper  # noqa: E402
from smca.d2.trainer import Trainer  # noqa: E402


def run(trainer, cfg, resume=False):
    training = trainer(cfg)
    training.resume_or_load(resume=resume)
    return training, training.train()


def metrics(folder):
    return [json.loads(line) for line in Path(folder, "metrics.json").read_text().splitlines()]


def test_hooks_are_added(d2_config, tmp_path):
    seen = []

    class Steps(hooks.HookBase):
        def after_step(self):
            seen.append(self.trainer.iter)
            self.trainer.storage.put_scalar("of_their_own", 7.0)

    class Project(Trainer):
        def build_hooks(self):
            theirs = super().build_hooks()
            theirs.insert(1, Steps())
            return theirs

    cfg = d2_config()
    run(Project, cfg)
    assert seen == list(range(6))
    assert {line.get("of_their_own") for line in metrics(cfg.OUTPUT_DIR)} >= {7.0}


def test_an_evaluator_is_added(d2_config):
    class Count(DatasetEvaluator):
        def reset(self):
            self.images = 0

        def process(self, inputs, outputs):
            self.images += len(inputs)
            assert outputs[0]["instances"].pred_boxes.tensor.shape[1] == 4

        def evaluate(self):
            return {"images": {"count": self.images}}

    class Project(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return DatasetEvaluators([super().build_evaluator(cfg, dataset_name), Count()])

    cfg = d2_config()
    _, results = run(Project, cfg)
    assert results["images"] == {"count": 6}
    assert "AP" in results["bbox"]
    assert {line.get("images/count") for line in metrics(cfg.OUTPUT_DIR)} >= {6}


def test_an_evaluator_replaces_ours(d2_config):
    class Count(DatasetEvaluator):
        def evaluate(self):
            return {"images": {"count": 6}}

    class Project(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return Count()

    cfg = d2_config()
    _, results = run(Project, cfg)
    assert results == {"images": {"count": 6}}
    assert Path(cfg.OUTPUT_DIR, "model_final.pth").exists()


class GreyMapper(DetrDatasetMapper):
    """Counts the images that it makes grey."""

    count = 0

    def __call__(self, record):
        sample = super().__call__(record)
        type(self).count += 1
        sample["image"] = torch.full_like(sample["image"], 128)
        return sample


@pytest.mark.parametrize("loader", ["ours", "detectron2's"])
def test_a_mapper_is_given_to_the_loader(loader, d2_config):
    class Project(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            mapper = GreyMapper(cfg, is_train=True)
            if loader == "ours":
                return super().build_train_loader(cfg, mapper=mapper)
            return build_detection_train_loader(cfg, mapper=mapper)

    GreyMapper.count = 0
    training, results = run(Project, d2_config("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()))
    assert GreyMapper.count >= 2 * 4
    assert all((sample["image"] == 128).all() for sample in training.iterations.batch)
    assert "AP" in results["bbox"]


def test_an_optimizer_replaces_ours_and_resumes(d2_config, tmp_path):
    class Project(Trainer):
        @classmethod
        def build_optimizer(cls, cfg, model):
            trained = [p for p in model.parameters() if p.requires_grad]
            return torch.optim.SGD(trained, lr=cfg.SOLVER.BASE_LR, momentum=0.5)

    whole, parts = (str(tmp_path / name) for name in ("whole", "parts"))
    run(Project, d2_config("OUTPUT_DIR", whole))
    run(Project, d2_config("OUTPUT_DIR", parts, "SOLVER.MAX_ITER", 3))
    Path(parts, "last_checkpoint").write_text("model_0000001.pth")
    training, _ = run(Project, d2_config("OUTPUT_DIR", parts), resume=True)
    assert training.start_iter == 2
    assert isinstance(training.optimizer, torch.optim.SGD)
    assert training.optimizer.param_groups[0]["momentum"] == 0.5
    ends = [
        torch.load(Path(folder, "model_final.pth"), weights_only=True)["model"]
        for folder in (whole, parts)
    ]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
