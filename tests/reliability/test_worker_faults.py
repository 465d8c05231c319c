"""Workers that fail, are killed, hang or lose their launcher: how soon all end, what is said."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engines import needs_detectron2

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
PROGRAM = Path(__file__).parents[2] / "train_net.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
LONG = ("MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.MAX_ITER", 5000, "SOLVER.STEPS", ())
LONG += ("SOLVER.CHECKPOINT_PERIOD", 5)
each_launcher = pytest.mark.parametrize(
    ("engine", "launcher"),
    [("native", "torchrun"), pytest.param("detectron2", "own", marks=needs_detectron2)],
)


def workers_of(process):
    """The numbers of the worker processes, in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {int(n): Path(f"/proc/{n}/cmdline").read_text() for n in children}
    return [n for n, line in lines.items() if "spawn_main" in line or PROGRAM.name in line]


def gone(numbers):
    for number in numbers:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return False
    return True


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def start(start_program):
    """``start(engine, launcher, *arguments)``: two workers, which are gone after the test."""
    processes = []

    def run(engine, launcher, *arguments):
        own = (PROGRAM, "--num-gpus", 2)
        script, *before = own if launcher == "own" else (*TORCHRUN, PROGRAM)
        arguments = (*before, "--engine", engine, *arguments)
        processes.append(start_program(*arguments, script=script))
        return processes[-1]

    yield run
    for process in processes:
        if process.poll() is None:
            for number in workers_of(process):
                os.kill(number, signal.SIGKILL)
            process.kill()
            process.wait()


@pytest.fixture
def training(start, config_file, tmp_path):
    """``training(engine, launcher)``: a long run that has begun, and its workers' numbers."""
    started = []

    def run(engine, launcher):
        process = start(engine, launcher, "--config-file", config_file(*LONG))

        def begun():
            assert process.poll() is None, process.printed()[-3000:]
            return (tmp_path / "out/model_0000004.pth").exists()

        wait_for(begun)
        started.extend(workers_of(process))
        assert len(started) == 2
        return process, started

    yield run
    for number in started:
        if not gone([number]):
            os.kill(number, signal.SIGKILL)


@pytest.mark.slow
@each_launcher
def test_a_killed_worker_ends_the_run(engine, launcher, training):
    """Within ten seconds no worker is left, and the last that is said is who was killed."""
    process, workers = training(engine, launcher)
    os.kill(workers[1], signal.SIGKILL)
    wait_for(lambda: gone(workers), seconds=10)
    output = process.printed()
    if launcher == "own":
        assert process.returncode == 128 + signal.SIGKILL
        assert output.splitlines()[-1] == (
            "WorkerError: worker 1 of 2 was ended by SIGKILL, most likely because the machine has "
            "run out of memory; --resume goes on from the last checkpoint"
        )
    else:
        cause = output.rpartition("Root Cause")[2]
        assert re.search(r"rank +: 1 ", cause) and "Signal 9 (SIGKILL)" in cause
        assert "run out of memory" in output
    assert output.count("Traceback") == (launcher == "torchrun")  # its own


@pytest.mark.slow
@each_launcher
def test_workers_end_when_their_launcher_is_killed(engine, launcher, training, tmp_path):
    """They save a checkpoint, as after SIGTERM, and none stays."""
    process, workers = training(engine, launcher)
    process.kill()
    wait_for(lambda: gone(workers), seconds=40)
    assert "--resume continues from model_" in process.printed()


@pytest.mark.slow
@each_launcher
def test_an_error_in_one_worker_is_all_that_is_said(
    engine, launcher, start, config_file, shapes, tmp_path
):
    """An image of the second worker's part cannot be read, while the first waits for results."""
    images = tmp_path / "images"
    images.mkdir()
    paths = sorted(Path(shapes["val"][1]).iterdir())
    for path in paths[:-1]:
        (images / path.name).symlink_to(path)
    own = [["train", *shapes["train"]], ["val", shapes["val"][0], str(images)]]
    file = config_file("DATASETS.COCO_FORMAT", own, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    begun = time.monotonic()
    process = start(engine, launcher, "--config-file", file)
    output = process.printed()
    assert time.monotonic() - begun < 100
    message = rf"DatasetError: cannot read \S*/{paths[-1].name}"
    if launcher == "own":
        assert process.returncode == 2, output[-3000:]
        errors = [line for line in output.splitlines() if re.match(r"\w+Error: ", line)]
        assert len(errors) == 1 and re.match(message, errors[0]), output[-3000:]
        assert "Traceback" not in output
    else:
        cause = output.rpartition("Root Cause")[2]
        assert re.search(r"rank +: 1 ", cause) and re.search(message, cause), output[-5000:]


# Two workers that add numbers, until something happens to the second.
SCRIPT = """
import os, signal, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from smca.config import get_cfg, load_cfg
from smca.engine.arguments import argument_parser
from smca.engine.guard import guarded
from smca.engine.launch import launch

def work(cfg, args):
    fault = os.environ["FAULT"]
    # From here on: until they have met, one may begin much later than the other.
    group = dist.new_group(timeout=timedelta(seconds=5))
    for number in range(10**6):
        if dist.get_rank() == 1 and number == 3:
            if fault == "raises":
                raise KeyError("of its own")
            if fault == "aborts":
                os.abort()
            if fault == "leaves":
                os._exit(0)
            if fault == "hangs":
                os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(torch.ones(1), group=group)

if __name__ == "__main__":
    args = argument_parser().parse_args(["--config-file", sys.argv[1], "--num-gpus", "2"])
    sys.exit(guarded(launch, work, load_cfg(get_cfg(), args.config_file), args))
"""


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("raises", 1, "KeyError: 'of its own'"),
        ("leaves", 1, "WorkerError: worker 0 of 2 has lost another one, whose message says why"),
        ("aborts", 134, "WorkerError: worker 1 of 2 was ended by SIGABRT; --resume goes on"),
        pytest.param(
            "hangs",
            1,
            "WorkerError: worker 0 of 2 waited in vain for another one, which hangs: Timed out "
            "waiting 5000ms",
            marks=pytest.mark.slow,  # torch waits 30 seconds before it kills
        ),
    ],
)
def test_the_first_fault_is_the_last_line(fault, code, message, config_file, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent / "projects/SMCA")}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), config_file()],
        env={**environment, "FAULT": fault},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert time.monotonic() - begun < 100
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(message), done.stderr
    assert done.stderr.count("Traceback") == (fault == "raises")
