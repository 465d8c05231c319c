"""Many processes and many machines as users start them, in each host.

Two machines are two programs on this one, which meet at a port of it.
"""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from engines import needs_detectron2

from smca.config import ConfigError
from smca.engine.arguments import argument_parser
from smca.engine.launch import Worker, launch, torchrun_worker

PROGRAM = Path(__file__).parents[2] / "train_net.py"
TORCHRUN = ("-m", "torch.distributed.run")
# Batch statistics would depend on how a batch is shared out.
EXACT = ["MODEL.RESNETS.NORM", "FrozenBN"]
# Pictures and evaluations on the way must make no worker wait in vain.
WATCHED = [*EXACT, "MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", 0.3]
WATCHED += ["VIS_PERIOD", 2, "TEST.EVAL_PERIOD", 3]


@pytest.fixture
def start(engine, start_program):
    """``start("--flag", ..., launcher=(...))``: the program in this host, in the background."""

    def run(*arguments, launcher=()):
        script, *before = *launcher, PROGRAM
        return start_program(*before, "--engine", engine, *arguments, script=script)

    return run


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finish(process, code=0):
    output = process.printed()
    assert process.returncode == code, output[-5000:]
    return output


def wait_for(process, condition):
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.printed()[-5000:]
        assert time.monotonic() < end
        time.sleep(0.02)


def weights(folder, name="model"):
    return torch.load(folder / "model_final.pth", weights_only=True)[name]


def last_losses(folder):
    """What the metrics of the last of the six iterations say, of all workers together."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    last = [line for line in lines if line["iteration"] == 5]
    return {name: value for line in last for name, value in line.items() if "loss" in name}


def spawned(start, run, port):
    return [start(*run, "--num-gpus", 2)]


def spawned_on_two_machines(start, run, port):
    run += ("--num-machines", 2, "--dist-url", f"tcp://127.0.0.1:{port}")
    return [start(*run, "--machine-rank", rank) for rank in range(2)]


def torchrun(start, run, port):
    return [start(*run, launcher=(*TORCHRUN, "--nproc-per-node", 2, "--master-port", port))]


def torchrun_on_two_machines(start, run, port):
    place = ("--rdzv-backend", "c10d", "--rdzv-id", 1, "--rdzv-endpoint", f"127.0.0.1:{port}")
    launcher = (*TORCHRUN, "--nnodes", 2, "--nproc-per-node", 1, *place)
    return [start(*run, launcher=(*launcher, "--local-addr", "127.0.0.1")) for _ in range(2)]


@pytest.fixture(scope="module")
def trained():
    return {}


@pytest.fixture
def whole_batch(trained, engine, train_net, config_file, tmp_path_factory):
    """The folder of one process with the whole batch, which each host trains once."""
    if engine not in trained:
        folder = trained[engine] = tmp_path_factory.mktemp(engine)
        run = ("--engine", engine, "--config-file", config_file(*WATCHED))
        train_net(*run, "OUTPUT_DIR", folder)
    return trained[engine]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch", [spawned, spawned_on_two_machines, torchrun, torchrun_on_two_machines]
)
def test_two_processes_are_one_with_the_whole_batch(
    launch, start, whole_batch, config_file, port, tmp_path
):
    """Their weights, the moving average of these, and their losses."""
    run = ("--config-file", config_file(*WATCHED))
    outputs = [finish(process) for process in launch(start, run, port)]
    for name in ("model", "ema"):
        found, expected = (weights(folder, name) for folder in (tmp_path / "out", whole_batch))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    expected = last_losses(whole_batch)
    assert "total_loss" in expected
    assert last_losses(tmp_path / "out") == pytest.approx(expected, abs=1e-4)
    assert "| device | 2 x CPU" in (tmp_path / "out/results.md").read_text()
    # One worker alone writes.
    assert sum("model_final.pth" in output for output in outputs) == 1
    assert not any("FutureWarning" in output for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "launch"),
    [
        ("native", spawned),
        ("native", torchrun),
        pytest.param("detectron2", torchrun, marks=needs_detectron2),
    ],
)
def test_sigterm_saves_a_checkpoint_that_resumes(launch, start, config_file, port, tmp_path):
    long = ("SOLVER.MAX_ITER", 80, "SOLVER.CHECKPOINT_PERIOD", 20, "SOLVER.STEPS", ())
    run = ("--config-file", config_file(*EXACT, *long), "--resume")
    (process,) = launch(start, run, port)
    wait_for(process, (tmp_path / "out/model_0000019.pth").exists)
    process.terminate()  # the launcher alone, which passes it on
    output = process.printed()
    assert process.returncode == {spawned: 128 + signal.SIGTERM, torchrun: 1}[launch], output[
        -5000:
    ]
    stopped = (tmp_path / "out/last_checkpoint").read_text()
    assert f"--resume continues from {stopped}" in output
    (process,) = launch(start, run, port)
    (first,) = re.findall(r"raining from iteration (\d+)", finish(process))
    assert stopped == f"model_{int(first) - 1:07d}.pth" and 20 <= int(first) < 80
    assert weights(tmp_path / "out")


def workers_of(process):
    """The numbers of the processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    numbers = [int(number) for number in children.read_text().split()]
    return [n for n in numbers if PROGRAM.name in Path(f"/proc/{n}/cmdline").read_text()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_after_a_worker_has_died_torchrun_resumes_the_run(
    start, config_file, tmp_path, monkeypatch
):
    """The other worker is ended, and both go on from the last checkpoint."""
    # Else the new workers would look for each other where the old ones were.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    long = ("SOLVER.MAX_ITER", 60, "SOLVER.CHECKPOINT_PERIOD", 20, "SOLVER.STEPS", ())
    run = ("--config-file", config_file(*EXACT, *long), "--resume")
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", 2, "--max-restarts", 1)
    process = start(*run, launcher=launcher)
    wait_for(process, (tmp_path / "out/model_0000019.pth").exists)
    first, second = workers_of(process)
    os.kill(second, signal.SIGKILL)
    output = finish(process)
    assert not Path(f"/proc/{first}").exists()
    assert int(re.findall(r"raining from iteration (\d+)", output)[-1]) >= 20
    assert weights(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native"])
def test_torchruns_report_shows_the_error(start, config_file, port):
    run = ("--config-file", config_file("MODEL.SMCA.NUM_CLASSES", 5))
    (process,) = torchrun(start, run, port)
    report = finish(process, code=1).rpartition("Root Cause")[2]
    assert re.search(r"exitcode  : 2 ", report)
    assert "DatasetError: MODEL.SMCA.NUM_CLASSES is 5, but dataset" in report


@pytest.fixture
def variables(monkeypatch):
    """Those of the second process of torchrun's first machine, of two machines."""
    values = {"RANK": 1, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**values, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


def parsed(*flags):
    return argument_parser().parse_args(["--config-file", "some.yaml", *map(str, flags)])


def test_a_process_of_torchrun_is_a_worker(variables):
    expected = Worker(rank=1, world_size=4, local_rank=1, local_world_size=2)
    assert torchrun_worker(parsed()) == expected
    flags = ("--num-gpus", 2, "--num-machines", 2, "--machine-rank", 0)
    assert torchrun_worker(parsed(*flags)) == expected


def test_any_other_process_is_none():
    assert torchrun_worker(parsed("--num-gpus", 2)) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-gpus", 4), "--num-gpus is 4, but torchrun says 2"),
        (("--num-gpus", 2, "--num-machines", 1), "--num-machines is 1, but torchrun says 2"),
        (("--machine-rank", 1), "--machine-rank is 1, but torchrun says 0"),
        (("--dist-url", "tcp://127.0.0.1:1"), "torchrun's --rdzv-endpoint decides"),
    ],
)
def test_flags_that_contradict_torchrun_are_refused(flags, message, variables):
    with pytest.raises(ConfigError, match=message):
        torchrun_worker(parsed(*flags))


def test_variables_that_are_missing_or_unequal_are_refused(variables, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match="--nproc-per-node is 2 here; it must be the same on all"):
        torchrun_worker(parsed())
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match="LOCAL_RANK is set, but not WORLD_SIZE, MASTER_PORT"):
        torchrun_worker(parsed())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--machine-rank", 1), "--machine-rank is 1; the machines are 0 to 0"),
        (("--num-machines", 2, "--machine-rank", -1), "-1; the machines are 0 to 1"),
        (("--num-machines", 2), "--dist-url must be tcp://host:port of machine 0"),
    ],
)
def test_machines_that_cannot_meet_are_refused(flags, message, config):
    with pytest.raises(ConfigError, match=message):
        launch(lambda *_: None, config("quickstart"), parsed(*flags))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native"])
def test_machines_that_disagree_on_the_checkpoint_are_refused(start, config_file, port, tmp_path):
    """Each with a folder of its own, only the first machine's has what to resume from, damaged."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0/last_checkpoint").write_bytes(b"model_0000003.pth\xff")
    run = ("--config-file", config_file(), "--resume", "--num-machines", 2)
    run += ("--dist-url", f"tcp://127.0.0.1:{port}", "--machine-rank")
    programs = [start(*run, rank, "OUTPUT_DIR", tmp_path / str(rank)) for rank in range(2)]
    for program in programs:
        last = finish(program, code=2).splitlines()[-1]
        assert "the machines disagree on" in last and "model_0000003.pth" in last


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["native"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_more_processes_than_gpus_are_refused(start, config_file):
    run = ("--config-file", config_file("MODEL.DEVICE", "cuda"), "--num-gpus", 1000)
    output = finish(start(*run), code=2)
    assert "GPUs for 1000 processes on this machine" in output.splitlines()[-1]
