"""The README's training command as users type it, on a few images in COCO's folders."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from weights_server import zoo_resnet


@pytest.fixture
def small_coco(shapes, tmp_path, monkeypatch):
    """COCO's folders, file names and 80 category ids with gaps, around a few drawn images."""
    root = tmp_path / "datasets" / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads(Path(shapes[split][0]).read_text())
        missing = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
        ids = [number for number in range(1, 91) if number not in missing]
        content["categories"] = [{"id": number, "name": f"class {number}"} for number in ids]
        for number, annotation in enumerate(content["annotations"]):
            annotation["category_id"] = ids[number % 80]
        file = root / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(content))
        (root / f"{split}2017").symlink_to(shapes[split][1])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))


@pytest.mark.slow
def test_the_command_users_type(engine, small_coco, start_program, tmp_path, monkeypatch):
    """The README's training command, on images of a size for two processes on a CPU.

    A ResNet of torchvision lies where the one of the config would be fetched to.
    """
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    place = tmp_path / "detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    place.parent.mkdir(parents=True)
    resnet = zoo_resnet(torchvision.models.resnet50().state_dict())
    place.write_bytes(pickle.dumps(resnet))
    sizes = ("INPUT.MIN_SIZE_TRAIN", (96, 128), "INPUT.MIN_SIZE_TEST", 96)
    sizes += ("INPUT.CROP.SIZE", (48, 96), "INPUT.CROP.MIN_SIZE_BEFORE", (96,))
    length = ("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 2)
    run = ("--engine", engine, "--config-file", "configs/smca_R50_108ep.yaml", "--num-gpus", 2)
    run += ("OUTPUT_DIR", tmp_path / "out")
    process = start_program(*run, *sizes, *length, "DATALOADER.NUM_WORKERS", 1)
    output = process.printed()
    assert process.returncode == 0, output[-5000:]
    assert f"{place}: backbone loaded, the rest starts anew" in output
    model = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    for name in ("stem.conv1.weight", "stem.conv1.norm.running_var", "res2.2.conv3.weight"):
        expected = torch.from_numpy(resnet["model"][name])  # of frozen stages
        torch.testing.assert_close(model[f"backbone.{name}"], expected, rtol=0, atol=0)
    assert model["heads.class_head.weight"].shape == (80, 256)
    results = json.loads((tmp_path / "out/inference/coco_instances_results.json").read_text())
    assert len(results) == 6 * 300
    assert {row["category_id"] for row in results} <= set(range(1, 91))
