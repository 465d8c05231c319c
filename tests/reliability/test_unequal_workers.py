"""Workers with unequal shares: fewer images than workers, and workers that have no boxes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engines import ENGINES

ROOT = Path(__file__).parents[2]
EXACT = ["MODEL.RESNETS.NORM", "FrozenBN"]


@pytest.fixture
def few_images(shapes, tmp_path):
    """Two images to train on, of which one has no boxes and the other a single one; two others."""
    datasets = []
    for name, (file, folder) in shapes.items():
        content = json.loads(Path(file).read_text())
        content["images"] = content["images"][:2]
        kept = {image["id"] for image in content["images"]}
        boxes = [a for a in content["annotations"] if a["image_id"] in kept]
        if name == "train":
            boxes = [a for a in boxes if a["image_id"] == content["images"][0]["id"]][:1]
        content["annotations"] = boxes
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        datasets.append([name, str(path), str(folder)])
    return datasets


def found(folder):
    """All detections, as rows of the image, the class, the score and the box."""
    rows = json.loads((folder / "inference/coco_instances_results.json").read_text())
    return sorted([row["image_id"], row["category_id"], row["score"], *row["bbox"]] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_more_workers_than_images(
    engine, few_images, config_file, train_net, start_program, tmp_path
):
    """Three workers learn from two images, mostly without a box, and find what one does."""
    changes = ("DATASETS.COCO_FORMAT", few_images, "SOLVER.IMS_PER_BATCH", 3)
    changes += ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SOLVER.CHECKPOINT_PERIOD", 100)
    run = ("--engine", engine, "--config-file", config_file(*EXACT, *changes))
    one, three, again = (tmp_path / name for name in ("one", "three", "again"))
    train_net(*run, "OUTPUT_DIR", one)
    start_program(*run, "--num-gpus", 3, "OUTPUT_DIR", three).done()
    models = [torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (one, three)]
    torch.testing.assert_close(*models, rtol=0, atol=1e-4)
    # The same weights, by one worker: each image was looked at once.
    weights = ("MODEL.WEIGHTS", three / "model_final.pth")
    train_net(*run, "--eval-only", *weights, "OUTPUT_DIR", again)
    rows = found(again)
    assert len(rows) == 2 * 30
    assert found(three) == rows


# Trains for 50 iterations on two images, all by one worker or each by one of two. The last of
# them has no boxes, ever.
SCRIPT = """
import sys
import smca, torch
import torch.distributed as dist
from smca.config import load_cfg
from smca.modeling.detector import build_detector
from smca.training import SetCriterion, Targets
from smca.training.solver import build_optimizer
from smca.engine.step import TrainingStep

def work(rank, world_size, files):
    if world_size > 1:
        url = f"file://{files[0]}.meet"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)
    for file in files:
        torch.save(train(rank, world_size, file), f"{file}.{world_size}.{rank}.pth")

def train(rank, world_size, file):
    cfg = load_cfg(smca.get_cfg(), file)
    cfg.MODEL.SMCA.NUM_CLASSES = 3
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    labels, boxes = [torch.tensor([1]), torch.tensor([])], [[[8, 8, 40, 30]], []]
    detector = model = build_detector(cfg).train()
    if world_size > 1:
        model = torch.nn.parallel.DistributedDataParallel(detector)
    criterion = SetCriterion(**SetCriterion.from_config(cfg))
    optimizer = build_optimizer(cfg, detector)
    step = TrainingStep(optimizer, device=torch.device("cpu"), amp=None)
    mine = range(rank, 2, world_size)
    targets = Targets.from_images(
        [labels[i].long() for i in mine],
        [torch.tensor(boxes[i]).reshape(-1, 4).float() for i in mine],
        [(64, 64)] * len(mine),
        torch.device("cpu"),
    )
    sizes = [(64, 64)] * len(mine)
    losses = [
        step(lambda: criterion(model(images[list(mine)], sizes, targets), targets), list(mine))
        for _ in range(50)
    ]
    return [detector.state_dict(), losses]

if __name__ == "__main__":
    work(0, 1, sys.argv[1:])
    torch.multiprocessing.spawn(work, args=(2, sys.argv[1:]), nprocs=2)
"""


GROUPS, DENOISING = "MODEL.SMCA.QUERY_GROUPS", "MODEL.SMCA.DENOISING"
LOSSES = {
    "focal": (GROUPS, 2),
    "softmax": ("MODEL.SMCA.LOSS.CLASSIFICATION", "softmax", GROUPS, 1),
    # Without noise, which each worker draws by itself.
    "denoising": (
        *(
            "MODEL.SMCA.DECODER.NAME",
            "AnchoredSMCADecoder",
            "MODEL.SMCA.TWO_STAGE",
            True,
            f"{DENOISING}.ENABLED",
            True,
        ),
        *(f"{DENOISING}.KIND", "classic", f"{DENOISING}.BOX_NOISE", 0.0),
        *(f"{DENOISING}.LABEL_NOISE", 0.0),
    ),
}


@pytest.mark.slow
def test_a_worker_that_never_has_boxes(config_file, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    files = []
    for name, changes in LOSSES.items():
        file = Path(config_file(*EXACT, "MODEL.SMCA.DROPOUT", 0.0, *changes))
        files.append(file.rename(tmp_path / name))
    command = [sys.executable, str(tmp_path / "script.py"), *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects/SMCA")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    for file in files:
        (one, losses), (two, shared) = (
            torch.load(f"{file}.{count}.0.pth", weights_only=True) for count in (1, 2)
        )
        assert losses[-1]["loss_l1"] < losses[0]["loss_l1"]
        for ours, theirs in zip(losses, shared, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
