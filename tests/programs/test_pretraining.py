"""UP-DETR as its users run it, in each host: pre-train on a folder of images, then fine-tune."""

import re
from pathlib import Path

import pytest
import torch
from engines import needs_detectron2

from smca.checkpoints import read_checkpoint

UP_DETR = [
    *("MODEL.RESNETS.NORM", "FrozenBN"),
    *("MODEL.SMCA.PRE_NORM", True, "MODEL.SMCA.LOSS.CLASSIFICATION", "softmax"),
    *("MODEL.SMCA.QUERY_GROUPS", 1, "MODEL.SMCA.NUM_QUERIES", 12),
]


@pytest.fixture
def pretraining(config_file, shapes, tmp_path):
    """``pretraining("KEY", value, ...)``: the file of a pre-training on the images of shapes."""
    return lambda *opts: config_file(
        *UP_DETR,
        *("MODEL.SMCA.DECODER.NAME", "UPDETRDecoder", "MODEL.SMCA.NUM_CLASSES", 2),
        *("MODEL.SMCA.UP_DETR.NUM_PATCHES", 4, "MODEL.SMCA.UP_DETR.PATCH_SIZE", 32),
        *("MODEL.SMCA.UP_DETR.FEATURE_DIM", 64, "MODEL.BACKBONE.FREEZE_AT", 5),
        *("DATASETS.TRAIN", ("images",), "DATASETS.TEST", ()),
        *("DATASETS.COCO_FORMAT", [["images", "", str(shapes["train"][1])]]),
        *("OUTPUT_DIR", str(tmp_path / "pre")),
        *opts,
    )


def test_pretrained_weights_start_a_fine_tuning(
    engine, pretraining, config_file, train_net, tmp_path
):
    printed = train_net("--engine", engine, "--config-file", pretraining())
    assert "loss_feature" in (tmp_path / "pre" / "metrics.json").read_text()
    if engine == "native":
        assert "feature" in next(line for line in printed.splitlines() if "iter 6/6" in line)
    file = tmp_path / "pre" / "model_final.pth"
    content = read_checkpoint(file)
    assert "class_names" not in content
    fine_tuning = config_file(
        *UP_DETR,
        *("MODEL.SMCA.DECODER.NAME", "DETRDecoder", "MODEL.WEIGHTS", str(file)),
        *("MODEL.SMCA.NUM_CLASSES", 3, "SOLVER.BASE_LR", 1e-12, "SOLVER.WEIGHT_DECAY", 0.0),
    )
    printed = train_net("--engine", engine, "--config-file", fine_tuning)
    told = [line for line in printed.splitlines() if "model_final.pth is pre-trained" in line]
    assert len(told) == 1 and "the class head starts anew" in told[0]
    for other in ("they start anew", "does not know", "no class names"):
        assert other not in printed
    tuned = read_checkpoint(tmp_path / "out" / "model_final.pth")["model"]
    assert tuned["heads.class_head.weight"].shape == (4, 32)
    for name, tensor in content["model"].items():
        if not name.startswith(("heads.class", "decoder.patch2query", "decoder.feature_align")):
            torch.testing.assert_close(tuned[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_resumed_pretraining_is_exact(engine, pretraining, train_net, tmp_path):
    run = "--engine", engine, "--config-file", pretraining("DATALOADER.NUM_WORKERS", 1)
    train_net(*run)
    whole = read_checkpoint(tmp_path / "pre" / "model_final.pth")["model"]
    (tmp_path / "pre" / "model_final.pth").unlink()
    (tmp_path / "pre" / "last_checkpoint").write_text("model_0000003.pth")
    train_net(*run, "--resume")
    resumed = read_checkpoint(tmp_path / "pre" / "model_final.pth")["model"]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_two_workers_pretrain_as_one(engine, pretraining, start_program, tmp_path):
    """With the same images, and no dropout, which each worker draws for itself."""
    drop = "MODEL.SMCA.UP_DETR.PATCH_DROPOUT", 0.0
    for workers in (1, 2):
        file = pretraining(*drop, "OUTPUT_DIR", str(tmp_path / f"{workers}"))
        run = "--engine", engine, "--config-file", file, "--num-gpus", workers
        start_program(*run).done()
    one, two = (read_checkpoint(tmp_path / n / "model_final.pth")["model"] for n in ("1", "2"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=1e-4)


@needs_detectron2
def test_both_hosts_learn_the_same(pretraining, train_net, tmp_path):
    losses = {}
    for engine in ("native", "detectron2"):
        out = tmp_path / engine
        file = pretraining("OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", 3)
        train_net("--engine", engine, "--config-file", file)
        losses[engine] = read_checkpoint(out / "model_final.pth")["model"]
    for name, tensor in losses["native"].items():
        torch.testing.assert_close(losses["detectron2"][name], tensor, atol=1e-6, rtol=1e-5)


@needs_detectron2
def test_datasets_that_other_projects_register(pretraining, train_net, shapes, tmp_path):
    from detectron2.data import DatasetCatalog

    files = sorted(Path(shapes["train"][1]).iterdir())[:3]
    DatasetCatalog.register("theirs", lambda: [{"file_name": str(file)} for file in files])
    try:
        options = "DATASETS.TRAIN", ("theirs",), "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()
        train_net("--engine", "detectron2", "--config-file", pretraining(*options))
    finally:
        DatasetCatalog.remove("theirs")
    assert "of 3 images" in (tmp_path / "pre" / "results.md").read_text()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("DATASETS.TEST", ("val",)), r"DATASETS.TEST is \('val',\); it must be \(\) to pre-train"),
        (
            ("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [20, 20]),
            "CROP.ENABLED is True; it must",
        ),
        (("VIS_PERIOD", 5), "VIS_PERIOD is 5; it must be 0 to pre-train"),
        (
            ("DATALOADER.ASPECT_RATIO_GROUPING", True),
            "ASPECT_RATIO_GROUPING is True; it must be False to pre-train",
        ),
        (("MODEL.SMCA.NUM_CLASSES", 1), "NUM_CLASSES is 1; it must be 2 to pre-train, where class"),
        (("DATASETS.TRAIN", ()), "DATASETS.TRAIN is empty; name folders of images"),
    ],
)
def test_what_a_pretraining_cannot_do_is_refused(engine, pretraining, program, opts, message):
    ended = program("train_net.py", "--engine", engine, "--config-file", pretraining(*opts))
    assert ended.returncode == 2 and "Traceback" not in ended.output
    assert re.search(message, ended.last), ended.last


def test_a_folder_is_not_enough_to_detect(engine, config_file, program, shapes):
    files = [["train", "", str(shapes["train"][1])]]
    run = config_file("DATASETS.COCO_FORMAT", files, "DATASETS.TEST", ())
    ended = program("train_net.py", "--engine", engine, "--config-file", run)
    assert ended.returncode == 2 and "Traceback" not in ended.output
    assert "dataset 'train' has no annotation file" in ended.last


def test_it_finds_no_objects_itself(pretraining, train_net, program, tmp_path, shapes):
    file = pretraining()
    train_net("--engine", "native", "--config-file", file)
    weights = tmp_path / "pre" / "model_final.pth"
    picture = next(Path(shapes["train"][1]).iterdir())
    evaluated = program("train_net.py", "--config-file", file, "--eval-only")
    assert evaluated.returncode == 2 and "patches, and cannot be evaluated" in evaluated.last
    look = "--config-file", file, "--input", picture, "--output", tmp_path / "drawn"
    ended = program("demo.py", *look, "--opts", "MODEL.WEIGHTS", weights)
    assert ended.returncode == 2 and "finds patches, not objects; fine-tune" in ended.last
