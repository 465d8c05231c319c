"""train_net.py as users run it, in each host."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from engines import needs_detectron2
from PIL import Image

EXACT = ["MODEL.RESNETS.NORM", "FrozenBN", "TEST.EVAL_PERIOD", 3]


def metrics(folder):
    """The values of `metrics.json` by iteration; a later line counts."""
    merged = {}
    for line in (Path(folder) / "metrics.json").read_text().splitlines():
        values = json.loads(line)
        merged.setdefault(values.pop("iteration"), {}).update(values)
    return merged


def losses(values):
    return {name: value for name, value in values.items() if "loss" in name}


def checkpoint(folder, name="model_final"):
    return torch.load(Path(folder) / f"{name}.pth", weights_only=True)


@pytest.fixture(scope="module")
def trained():
    return {}


@pytest.fixture
def one_process(trained, engine, config_file, train_net, tmp_path_factory):
    """Folder and output of one run in each host, which the first test that asks for it makes."""
    if engine not in trained:
        folder = tmp_path_factory.mktemp(engine)
        file = config_file(*EXACT, "OUTPUT_DIR", str(folder))
        output = train_net("--engine", engine, "--config-file", file)
        trained[engine] = {"output": output, "folder": folder}
    return trained[engine]


def test_training_leaves_all_files(engine, one_process):
    folder = one_process["folder"]
    names = {path.name for path in folder.iterdir()}
    checkpoints = {"model_0000001.pth", "model_0000003.pth"}
    expected = checkpoints | {"model_final.pth", "model_best.pth", "last_checkpoint"}
    expected |= {"config.yaml", "log.txt", "metrics.json", "inference"}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    by_iteration = metrics(folder)
    assert {"total_loss", "loss_class", "loss_l1_0", "lr", "data_time"} <= set(by_iteration[5])
    evaluated = [iteration for iteration, values in by_iteration.items() if "bbox/AP" in values]
    assert len(evaluated) == 2
    results = json.loads((folder / "inference/coco_instances_results.json").read_text())
    assert len(results) == 6 * 30
    assert f"Engine: {engine}" in one_process["output"]
    assert "FutureWarning" not in one_process["output"]


@pytest.mark.parametrize("how", ["named", "beside the config", "in OUTPUT_DIR", "--resume"])
def test_evaluation_only(engine, one_process, how, config_file, train_net):
    """A run's own checkpoint need not be named; which file is used is said first and last."""
    folder = one_process["folder"]
    file, best = config_file(*EXACT), folder / "model_best.pth"
    arguments, used, why = {
        "named": ([file, "MODEL.WEIGHTS", best], best, "as named"),
        "beside the config": ([folder / "config.yaml"], None, "the last checkpoint of the run"),
        "in OUTPUT_DIR": ([file, "OUTPUT_DIR", folder], None, "the last checkpoint of the run"),
        "--resume": ([file, "--resume", "OUTPUT_DIR", folder], None, "the last one, by --resume"),
    }[how]
    used = used or folder / "model_final.pth"
    output = train_net("--engine", engine, "--eval-only", "--config-file", *arguments)
    lines = output.splitlines()
    assert any(f"Weights: {used} (" in line and why in line for line in lines[:3]), lines[:3]
    assert any(f"results of {used}" in line for line in lines[-30:]), output[-4000:]
    if used != best:
        expected = list(metrics(folder).values())[-1]["bbox/AP"]
        pattern = r"copypaste: ([\d.]+)" if engine == "detectron2" else r"\bAP ([\d.]+)  AP50"
        assert float(re.findall(pattern, output)[-1]) == pytest.approx(expected, abs=0.006)


def wait_for(process, condition):
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.printed()[-5000:]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_signals_and_crashes_lose_nothing(engine, config_file, train_net, start_program, tmp_path):
    common = [
        *("SOLVER.MAX_ITER", 100, "SOLVER.CHECKPOINT_PERIOD", 20, "DATALOADER.NUM_WORKERS", 1),
        *("MODEL.SMCA.DROPOUT", 0.1, "INPUT.MIN_SIZE_TRAIN", (64, 96), "SEED", -1),
    ]
    run = ("--engine", engine, "--config-file", config_file(*common))
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    again = (*run, "--resume", "OUTPUT_DIR", parts)

    process = start_program(*again)
    wait_for(process, (parts / "model_0000019.pth").exists)
    # To the whole group, as a terminal or a batch system does it: loader processes too.
    number = signal.SIGINT if engine == "native" else signal.SIGTERM
    os.killpg(process.pid, number)
    output = process.printed()
    assert process.returncode == 128 + number, output[-5000:]
    stopped = (parts / "last_checkpoint").read_text()
    assert "--resume continues from " + stopped in output
    assert "Traceback" not in output

    process = start_program(*again)
    number = int(stopped[len("model_") : -len(".pth")])
    later = parts / f"model_{(number // 20 + 1) * 20 + 19:07d}.pth"
    wait_for(process, later.exists)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL

    train_net(*again)
    found = checkpoint(parts)
    train_net(*run, "OUTPUT_DIR", whole, "SEED", found["trainer"]["seed"])
    expected = checkpoint(whole)
    assert losses(metrics(parts)[99]) == losses(metrics(whole)[99])
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    states = [content["trainer"]["_trainer"]["optimizer"]["state"] for content in (found, expected)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_mixed_precision_trains(engine, config_file, train_net, tmp_path):
    file = config_file("SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())
    train_net("--engine", engine, "--config-file", file)
    assert all(
        tensor.dtype != torch.bfloat16 for tensor in checkpoint(tmp_path / "out")["model"].values()
    )
    assert metrics(tmp_path / "out")[1]["total_loss"] > 0


@pytest.mark.slow
@needs_detectron2
def test_each_host_continues_the_others_run(config_file, train_net, tmp_path):
    """Without flips, which the hosts draw from different generators, a run may change hosts."""
    file = config_file(*EXACT, "INPUT.RANDOM_FLIP", "none")
    finals = []
    for number, hosts in enumerate([("native", "detectron2"), ("detectron2", "native")]):
        folder = tmp_path / str(number)
        run = ("--config-file", file, "OUTPUT_DIR", folder)
        train_net("--engine", hosts[0], *run)
        finals.append(checkpoint(folder))
        # Back to the middle of the run, then on in the other host.
        (folder / "last_checkpoint").write_text("model_0000003.pth")
        (folder / "model_final.pth").unlink()
        train_net("--engine", hosts[1], "--resume", *run)
        finals.append(checkpoint(folder))
    for other in finals[1:]:
        torch.testing.assert_close(other["model"], finals[0]["model"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_an_error_in_a_worker_process_is_its_own_message(engine, config_file, start_program):
    file = config_file("MODEL.SMCA.NUM_CLASSES", 5)
    run = ("--engine", engine, "--config-file", file, "--num-gpus", 2)
    process = start_program(*run)
    output = process.printed()
    assert process.returncode == 2
    assert "DatasetError: MODEL.SMCA.NUM_CLASSES is 5, but dataset" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_loss_that_is_not_finite_stops_and_says_where(engine, config_file, program, tmp_path):
    file = config_file("SOLVER.BASE_LR", 1e30)
    ended = program("train_net.py", "--engine", engine, "--config-file", file)
    assert ended.returncode == 3, ended.output[-3000:]
    last = ended.last
    (iteration,) = re.findall(r"not finite at iteration (\d):", last)
    assert "loss_class" in last and re.search(r"images \[\d+, \d+, \d+, \d+\]", last)
    saved = tmp_path / "out" / f"model_nonfinite_{int(iteration):07d}.pth"
    assert str(saved) in last and checkpoint(saved.parent, saved.stem)["model"]
    assert not (tmp_path / "out/last_checkpoint").exists() or int(iteration) > 1


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.WEIGHTS", "missing.pth"], "FileNotFoundError: checkpoint 'missing.pth'"),
        (["SOLVER.BASE_RL", 1], "unknown config key SOLVER.BASE_RL"),
        (["MODEL.SMCA.MODULATION.SCALE", "round"], "must be one of 'fixed', 'single'"),
        (["DATASETS.TRAIN", ("nowhere",)], "DatasetError: unknown dataset 'nowhere'"),
        (["--resume", "--num-gpus", 3], "SOLVER.IMS_PER_BATCH is 4; it must be a multiple of"),
        (["--eval-only"], "no trained weights: MODEL.WEIGHTS is empty"),
        (["DATASETS.TRAIN", ("coco_2017_train",)], "annotations/instances_train2017.json"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(engine, opts, message, config_file, program):
    run = ("--engine", engine, "--config-file", config_file(), *opts)
    ended = program("train_net.py", *run)
    assert ended.returncode == 2, ended.output[-3000:]
    assert message in ended.last
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "quickstrat"], "quickstart"),
        (["--config", "configs/quickstart.yaml"], "--config-file takes a file"),
        (
            ["--config", "quickstart", "--config-file", "configs/quickstart.yaml"],
            "not allowed with",
        ),
        ([], "one of the arguments --config-file --config is required"),
    ],
)
def test_one_config_is_named_and_known(arguments, message, program):
    ended = program("train_net.py", *arguments)
    assert ended.returncode == 2
    assert message in ended.last


def test_bad_images_and_boxes(engine, config_file, program, train_net, shapes, tmp_path):
    """Training goes on without a broken file, bad boxes are counted, evaluation stops."""
    json_file, folder = shapes["train"]
    content = json.loads(Path(json_file).read_text())
    images = tmp_path / "images"
    images.mkdir()
    for entry in content["images"]:
        Image.open(Path(folder) / entry["file_name"]).save(images / entry["file_name"])
    broken = images / content["images"][0]["file_name"]
    broken.write_bytes(broken.read_bytes()[:100])
    template = content["annotations"][0]
    for number, bbox in enumerate([[5, 5, 0, 9], [5, 5, -3, 9], [500, 500, 9, 9]], start=900):
        content["annotations"].append({**template, "id": number, "bbox": bbox})
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    own = [["bad", str(bad), str(images)], ["val", *shapes["val"]]]
    options = ("DATASETS.COCO_FORMAT", own, "DATASETS.TRAIN", ("bad",), "SOLVER.MAX_ITER", 4)
    file = config_file(*options, "SOLVER.STEPS", ())
    output = train_net("--engine", engine, "--config-file", file)
    assert output.count(f"cannot read {broken}") == 1
    counted = [line for line in output.splitlines() if "bad" in line and "3 " in line]
    assert counted, output[-3000:]

    saved = (tmp_path / "out/config.yaml").read_bytes()
    weights = ("MODEL.WEIGHTS", tmp_path / "out/model_final.pth", "DATASETS.TEST", ("bad",))
    run = ("--engine", engine, "--config-file", file, "--eval-only", *weights)
    ended = program("train_net.py", *run, "DATALOADER.NUM_WORKERS", 1)
    assert ended.returncode == 2, ended.output[-3000:]
    assert f"DatasetError: cannot read {broken}" in ended.last
    assert "Traceback" not in ended.output
    # An evaluation leaves what training has written.
    assert (tmp_path / "out/config.yaml").read_bytes() == saved


def test_a_failing_evaluation_loses_nothing(engine, config_file, program, shapes, tmp_path):
    """The first evaluation stops the run, and --resume continues after the iteration before it."""
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(Path(shapes["val"][1]).iterdir())[1:]:
        (images / path.name).symlink_to(path)
    own = [["train", *shapes["train"]], ["val", shapes["val"][0], str(images)]]
    options = ("DATASETS.COCO_FORMAT", own, "TEST.EVAL_PERIOD", 3, "SOLVER.CHECKPOINT_PERIOD", 100)
    ended = program("train_net.py", "--engine", engine, "--config-file", config_file(*options))
    assert ended.returncode == 2 and "cannot read" in ended.last, ended.output[-3000:]
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000002.pth"


def test_another_number_of_classes(engine, one_process, config_file, program, train_net):
    """Refused for evaluation; for fine-tuning the class head starts anew."""
    weights = ("MODEL.WEIGHTS", one_process["folder"] / "model_final.pth")
    file = config_file(*EXACT, "MODEL.SMCA.LOSS.CLASSIFICATION", "softmax")  # one column more
    run = ("--engine", engine, "--config-file", file)
    ended = program("train_net.py", *run, "--eval-only", *weights)
    assert "heads.class_head" in ended.last and ended.returncode == 2
    options = ("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    output = train_net(*run, *weights, *options)
    assert "class head not loaded" in output
