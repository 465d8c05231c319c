"""train_net.py is killed (SIGKILL) at any moment and resumed, in each host: nothing is lost."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked_program import Program
from PIL import Image, ImageOps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import smca
from smca.analysis.runs import read_metrics
from smca.checkpoints import read_checkpoint
from smca.config import load_cfg
from smca.data.shapes import write_shapes_dataset
from smca.engine.prepare import prepare

on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")

EVERYTHING = [
    # Thirteen images of two shapes: no epoch ends with a batch.
    *("DATALOADER.ASPECT_RATIO_GROUPING", True, "SOLVER.IMS_PER_BATCH", 4),
    *("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", (40, 60)),
    *("INPUT.CROP.MIN_SIZE_BEFORE", (64, 72), "INPUT.MIN_SIZE_TRAIN", (64, 96)),
    *("MODEL.SMCA.DROPOUT", 0.1, "MODEL.SMCA.ATTENTION_DROPOUT", 0.1),
    *("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.DENOISING.ENABLED", True),
    *("MODEL.SMCA.TWO_STAGE", True, "MODEL.SMCA.ONE_TO_MANY.ENABLED", True),
    *("MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", 0.9),
    *("SOLVER.MAX_ITER", 60, "SOLVER.STEPS", (40,), "SOLVER.BASE_LR", 2e-3),
    *("SOLVER.CHECKPOINT_PERIOD", 4, "TEST.EVAL_PERIOD", 9),
]
SHORT = ["SOLVER.MAX_ITER", 6, "SOLVER.STEPS", (4,), "SOLVER.CHECKPOINT_PERIOD", 3]
SHORT += ["TEST.EVAL_PERIOD", 3]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Drawn shapes, every third of the training images wider than high."""
    root = tmp_path_factory.mktemp("wide") / "shapes"
    files = write_shapes_dataset(root, num_train=13, num_val=4, image_size=64)
    annotations, folder = map(Path, files["train"])
    content = json.loads(annotations.read_text())
    for image in content["images"][::3]:
        path = folder / image["file_name"]
        ImageOps.expand(Image.open(path), (0, 0, 16, 0)).save(path)
        image["width"] += 16
    annotations.write_text(json.dumps(content))
    return files


@pytest.fixture
def killable(engine, tmp_path):
    program = Program(engine, tmp_path / "log.txt")
    yield program
    program.close()


def written(folder):
    """Names of the files that are being written."""
    return {path.name for path in folder.glob("*.tmp")}


def wait_for_moment(program, folder, writes, seconds):
    """Wait ``seconds`` from the beginning of write ``writes``, from now if 0, or for the end."""
    before, limit = written(folder), time.monotonic() + 300
    while writes > 0 and not program.ended():
        assert time.monotonic() < limit, program.log.read_text()[-5000:]
        names = written(folder)
        writes -= len(names - before)
        before = names
        time.sleep(0.0005)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not program.ended():
        time.sleep(0.0005)


def last_checkpoint(folder):
    path = folder / "last_checkpoint"
    return path.read_text() if path.exists() else None


def precisions(folder):
    return dict(zip(*read_metrics(folder / "metrics.json")["bbox/AP"], strict=True))


def shown_precisions(folder):
    """Those in TensorBoard's files."""
    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars("bbox/AP")}


def require_equal(folder, whole):
    """Two runs have come to the same."""
    for name in ("model_final.pth", "model_best.pth"):
        found, expected = (read_checkpoint(path / name) for path in (folder, whole))
        for content in (found, expected):
            del content["trainer"]["clock"], content["class_names"]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(map(json.loads, (folder / "metrics.json").read_text().splitlines()))
    assert precisions(folder) == precisions(whole)


@on_linux
@pytest.mark.slow
def test_twenty_kills_lose_nothing(engine, killable, config_file, train_net, tmp_path):
    workers = {"native": 1, "detectron2": 2}[engine]
    run = ("--config-file", config_file(*EVERYTHING, "DATALOADER.NUM_WORKERS", workers))
    whole = tmp_path / "whole"
    train_net("--engine", engine, *run, "OUTPUT_DIR", whole)
    expected = precisions(whole)
    assert len(expected) == 7 and len(set(expected.values())) > 2

    chance = random.Random(0)
    # Files that are begun to be written before the kill, and seconds from then.
    moments = [(chance.randint(1, 4), chance.uniform(0, 0.02)) for _ in range(8)]
    moments += [(chance.randint(1, 3), chance.uniform(0, 0.5)) for _ in range(8)]
    moments += [(0, chance.uniform(0, 2)) for _ in range(4)]
    chance.shuffle(moments)
    ends, resumed, kills, unfinished = 0, set(), 0, 0
    while moments or unfinished < 4:
        # However fast files are written here, some are to be cut short.
        moments = moments or [(1, 0.0)]
        folder = tmp_path / f"parts{ends}"
        killable.start(*run, "--resume", "OUTPUT_DIR", folder)
        wait_for_moment(killable, folder, *moments[-1])
        code = killable.kill()
        if code == 0:  # It was at its end before; the next one is killed sooner.
            require_equal(folder, whole)
            ends += 1
            moments[-1] = (moments[-1][0], moments[-1][1] / 2)
            continue
        assert code == -signal.SIGKILL, killable.log.read_text()[-5000:]
        kills += 1
        assert kills < 60
        unfinished += bool(written(folder))
        resumed.add((ends, last_checkpoint(folder)))
        moments.pop()
    killable.start(*run, "--resume", "OUTPUT_DIR", folder)
    assert killable.wait() == 0, killable.log.read_text()[-5000:]
    require_equal(folder, whole)
    assert "is damaged" not in killable.log.read_text()
    assert not written(folder)
    end = time.monotonic() + 20
    while killable.left() and time.monotonic() < end:
        time.sleep(0.1)
    assert not killable.left()
    # The run went on between the kills.
    assert len(resumed) >= 8
    shown = shown_precisions(folder)
    assert shown and shown == pytest.approx({step: expected[step] for step in shown})


@pytest.fixture
def trainer(engine, config_file, tmp_path):
    """``trainer("folder", "KEY", value, ...)``: that of the host, in this process."""

    def build(folder, *opts):
        opts = [*EVERYTHING, *SHORT, *opts, "OUTPUT_DIR", str(tmp_path / folder)]
        if engine == "native":
            from smca.native.trainer import Trainer

            return Trainer(prepare(load_cfg(smca.get_cfg(), config_file(*opts))))
        from detectron2.config import get_cfg

        from smca.d2 import add_smca_config, register_datasets
        from smca.d2.trainer import Trainer

        cfg = get_cfg()
        add_smca_config(cfg)
        cfg = prepare(load_cfg(cfg, config_file(*opts)))
        register_datasets(cfg)
        return Trainer(cfg)

    return build


def train(trainer, *, resume=False):
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def leave(folder, whole, name, checkpoint_of):
    """Make ``folder`` what a run of ``whole`` was when it had saved ``name``."""
    folder.mkdir(exist_ok=True)
    shutil.copy(whole / checkpoint_of, folder / name)
    (folder / "last_checkpoint").write_text(name)


def test_what_a_kill_cuts_short_is_made_up_for(trainer, tmp_path):
    """An evaluation, a file that was being written, and a line of metrics.json.

    The best model of another run, which is there yet, counts for nothing.
    """
    folder, whole = tmp_path / "parts", tmp_path / "whole"
    train(trainer("whole"))
    assert len(precisions(whole)) == 2
    leave(folder, whole, "model_0000002.pth", "model_0000002.pth")
    best = torch.load(whole / "model_best.pth", weights_only=True)
    best["trainer"]["hooks"]["BestCheckpointer"] = {"best_metric": 99.0, "best_iter": 1}
    torch.save(best, folder / "model_best.pth")
    for name in ("model_0000003.pth.tmp", "last_checkpoint.tmp", "mine.tmp"):
        (folder / name).write_bytes(b"begun")
    (folder / "metrics.json").write_text('{"iteration": 1, "lr": 0.1}\n{"iteration": 2, "bbox/A')
    train(trainer("parts"), resume=True)
    require_equal(folder, whole)
    assert read_metrics(folder / "metrics.json")["lr"][0][0] == 1
    assert written(folder) == {"mine.tmp"}


def test_an_evaluation_is_made_up_for_without_saving_again(trainer, tmp_path):
    folder, whole = tmp_path / "parts", tmp_path / "whole"
    often = ("TEST.EVAL_PERIOD", 2)
    train(trainer("whole", *often))
    leave(folder, whole, "model_0000001.pth", "model_0000001.pth")
    file = (folder / "model_0000001.pth").stat().st_ino
    train(trainer("parts", *often), resume=True)
    assert (folder / "model_0000001.pth").stat().st_ino == file
    require_equal(folder, whole)


def test_a_run_killed_before_its_last_file_gets_it(trainer, tmp_path):
    folder, whole = tmp_path / "parts", tmp_path / "whole"
    train(trainer("whole"))
    leave(folder, whole, "model_0000005.pth", "model_final.pth")
    shutil.copy(whole / "model_best.pth", folder)
    shutil.copy(whole / "metrics.json", folder)
    train(trainer("parts"), resume=True)
    assert last_checkpoint(folder) == "model_final.pth"
    require_equal(folder, whole)


def test_a_rate_that_is_changed_for_a_resume_counts(trainer, tmp_path):
    """From the first iteration on, as do the schedule and the weight decay."""
    folder, whole = tmp_path / "parts", tmp_path / "whole"
    train(trainer("whole"))
    leave(folder, whole, "model_0000002.pth", "model_0000002.pth")
    decay = ("SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.WEIGHT_DECAY_NORM", 0.5)
    one = trainer("parts", "SOLVER.BASE_LR", 5e-4, "SOLVER.STEPS", (3, 5), *decay)
    one.resume_or_load(resume=True)
    assert {group["lr"] for group in one.optimizer.param_groups} == {5e-5}
    assert {group["weight_decay"] for group in one.optimizer.param_groups} == {0.5}
    one.train()
    assert read_metrics(folder / "metrics.json")["lr"] == ([5], [pytest.approx(5e-6)])
    # With an earlier end the run is there already.
    leave(folder, whole, "model_0000002.pth", "model_0000002.pth")
    train(trainer("parts", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()), resume=True)
    assert last_checkpoint(folder) == "model_final.pth"


def test_a_gradient_scaler_goes_on_where_it_was(engine, trainer, tmp_path):
    """A CPU trains without, so that it is given one here; it doubles every other iteration."""
    folder, whole = tmp_path / "parts", tmp_path / "whole"
    ends = []
    for name in ("whole", "parts"):
        one = trainer(name)
        step = one.iterations.step
        step.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        if name == "parts":
            leave(folder, whole, "model_0000002.pth", "model_0000002.pth")
        train(one, resume=name == "parts")
        ends.append((step.scaler.get_scale(), step.scaler.state_dict()["_growth_tracker"]))
    assert ends == [(64.0, 0), (64.0, 0)]
    saved = read_checkpoint(folder / "model_0000002.pth")["trainer"]["_trainer"]["grad_scaler"]
    assert (saved["scale"], saved["_growth_tracker"]) == (16.0, 1)
    require_equal(folder, whole)
