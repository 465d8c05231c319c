"""Loader processes that are killed, wait for a file, or find no memory."""

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engines import needs_detectron2

from smca.data.dataset import EvaluationDataset
from smca.data.loader import build_train_loader, list_loader
from smca.data.reading import explain_end
from smca.errors import ConfigError

DETECTRON2 = pytest.param("detectron2", marks=needs_detectron2)
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
PROGRAM = Path(__file__).parent.parent.parent / "train_net.py"


class Held:
    """A file that others wait for when they open it, for 45 seconds at most: a lease is on it."""

    def __init__(self, path):
        self._file = os.open(path, os.O_RDWR)
        # The usual signal that somebody waits would end this process.
        fcntl.fcntl(self._file, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"needs leases on files ({error})")

    def reader(self, parent):
        """The number of the process that waits, a child of another."""
        children = Path(f"/proc/{parent}/task/{parent}/children")
        end = time.monotonic() + 300
        while True:
            for number in children.read_text().split():
                with contextlib.suppress(OSError):  # it has ended
                    if Path(f"/proc/{number}/wchan").read_text() == "__break_lease":
                        return int(number)
            assert time.monotonic() < end
            time.sleep(0.02)

    def let_go(self):
        fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self._file)


@pytest.fixture
def hold():
    """``hold(path)``: a :class:`Held` file, until the test ends."""
    files = []

    def begin(path):
        files.append(Held(path))
        return files[-1]

    yield begin
    for file in files:
        file.let_go()


def content(record):
    return Path(record["file_name"]).read_text()


@pytest.fixture
def records(tmp_path):
    paths = [tmp_path / name for name in ("first", "second", "third")]
    for path in paths:
        path.write_text(path.name)
    return [{"file_name": str(path)} for path in paths]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (signal.SIGKILL, "run out of memory: lower DATALOADER.NUM_WORKERS"),
        (signal.SIGBUS, "enlarge it (docker run --shm-size)"),
        (signal.SIGSEGV, "replace it or take it out of the annotations"),
    ],
)
def test_the_end_of_a_loader_process_names_the_file(number, remedy, records, hold):
    third = hold(records[2]["file_name"])
    loader = list_loader(EvaluationDataset(records, content), num_workers=1, batch_size=1)
    batches = iter(loader)
    assert [next(batches), next(batches)] == [["first"], ["second"]]
    os.kill(third.reader(os.getpid()), number)
    with pytest.raises(RuntimeError) as caught:
        next(batches)
    message = str(explain_end(caught.value))
    name, path = signal.Signals(number).name, records[2]["file_name"]
    assert message.startswith(f"a loader process was ended by {name} while it read {path}; ")
    assert remedy in message


def test_a_loader_process_that_reads_nothing_blames_no_file(records):
    others = multiprocessing.active_children()
    loader = list_loader(EvaluationDataset(records[:2], content), num_workers=1, batch_size=1)
    batches = iter(loader)
    assert [next(batches), next(batches)] == [["first"], ["second"]]
    (process,) = set(multiprocessing.active_children()) - set(others)
    with pytest.raises(RuntimeError) as caught:  # the signal of a child's end raises it
        process.kill()
        time.sleep(20)
    assert "was ended by SIGKILL between two batches; " in str(explain_end(caught.value))
    assert explain_end(RuntimeError("another")) is None


@pytest.mark.parametrize(
    ("engine", "part", "number"),
    [
        ("native", "val", signal.SIGSEGV),
        pytest.param("detectron2", "train", signal.SIGKILL, marks=needs_detectron2),
    ],
)
def test_a_run_says_so_in_one_line(
    engine, part, number, config_file, start_program, shapes, hold, tmp_path
):
    images = tmp_path / "images"
    shutil.copytree(shapes[part][1], images)
    path = sorted(images.iterdir())[-1]
    image = hold(path)
    own = [
        [name, file, str(images) if name == part else folder]
        for name, (file, folder) in shapes.items()
    ]
    length = ("SOLVER.MAX_ITER", 1 if part == "val" else 100, "SOLVER.STEPS", ())
    file = config_file("DATASETS.COCO_FORMAT", own, "DATALOADER.NUM_WORKERS", 1, *length)
    process = start_program("--engine", engine, "--config-file", file)
    os.kill(image.reader(process.pid), number)
    output = process.printed()
    assert process.returncode == 2, output[-3000:]
    last = output.splitlines()[-1].lstrip("\0")  # with which torch ends what it says of a crash
    assert last.startswith(
        f"LoaderError: a loader process was ended by {number.name} while it read"
    )
    assert str(path) in last
    assert "Traceback" not in output


# It prints the number of its loader process, which waits for a file.
WAITING = """
import sys, time
from pathlib import Path
from smca.data.dataset import EvaluationDataset
from smca.data.loader import list_loader

def content(record):
    return Path(record["file_name"]).read_text()

records = [{"file_name": sys.argv[1]}]
batches = iter(list_loader(EvaluationDataset(records, content), num_workers=1, batch_size=1))
next(batches)
"""


@pytest.mark.slow
def test_a_loader_process_that_waits_ends_with_its_trainer(records, hold):
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent / "projects/SMCA")}
    path = records[2]["file_name"]
    file = hold(path)
    trainer = subprocess.Popen([sys.executable, "-c", WAITING, path], env=environment)
    try:
        reader = file.reader(trainer.pid)
    finally:
        trainer.kill()
        trainer.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{reader}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("engine", ["native", DETECTRON2])
def test_full_shared_memory_is_an_error_and_no_endless_wait(engine, config_file, tmp_path):
    """With a /dev/shm of its own, as small as some containers have it beside larger images."""
    file = config_file("DATALOADER.NUM_WORKERS", 1)
    program = [sys.executable, PROGRAM, "--engine", engine, "--config-file", file]
    mount = 'mount -t tmpfs -o size=120k tmpfs /dev/shm || exit 99; exec "$@"'
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", *map(str, program)],
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parent / "projects/SMCA")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    if done.returncode in (1, 99) and not (tmp_path / "out").exists():
        pytest.skip("needs the right to mount a tmpfs")
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("LoaderError: shared memory has no room for a batch")
    assert "--shm-size" in last and "Traceback" not in done.stderr + done.stdout


def test_batches_of_loader_processes_lie_in_shared_memory():
    samples = [{"image": torch.ones(3, 4, 5), "nested": [torch.arange(3)]}] * 2
    (batch,) = list_loader(samples, num_workers=1, batch_size=2)
    torch.testing.assert_close(batch, samples)
    assert all(sample["image"].is_shared() for sample in batch)


@pytest.mark.parametrize(("grouping", "groups"), [(True, [0, 1, 1]), (False, [0, 0, 0])])
def test_wide_images_are_a_group_of_their_own(grouping, groups):
    records = [{"width": w, "height": h} for w, h in ((5, 4), (4, 5), (4, 4))]
    loader = build_train_loader(
        dataset=records,
        mapper=content,
        total_batch_size=1,
        aspect_ratio_grouping=grouping,
        num_workers=0,
    )
    assert loader.batch_sampler.groups.tolist() == groups


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ConfigError, match="SAMPLER_TRAIN is 'Nope'; it must be one of Training"):
        build_train_loader(dataset=[], mapper=content, total_batch_size=1, sampler="Nope")
