"""Stopping by a signal that goes to loader processes, too, as that of a batch system does."""

import multiprocessing
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from forked_program import ENVIRONMENT

import smca
from smca.config import load_cfg
from smca.data.loader import list_loader
from smca.engine.prepare import prepare
from smca.engine.stop import StopRequest


def test_a_signal_that_ends_loaders_disturbs_no_iteration_and_is_what_the_run_ends_with():
    before = set(multiprocessing.active_children())
    batches = iter(list_loader(list(range(1000)), num_workers=1, batch_size=1))
    assert next(batches) == [0]
    (loader,) = set(multiprocessing.active_children()) - before
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)]
    with pytest.raises(SystemExit) as stopped, StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        loader.terminate()
        loader.join()  # where the handler of torch would raise
        assert stop.agreed(0)
        for _ in batches:
            pass
    assert stopped.value.code == 128 + signal.SIGTERM
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)]


TOLD = """
import os, signal, sys
import torch.distributed as dist
from smca.engine.stop import StopRequest

child = os.fork()
rank = 0 if child else 1
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
with StopRequest() as stop:
    if rank == 1:
        signal.raise_signal(signal.SIGTERM)
    assert stop.agreed(9) and stop.exit_code == 143
    if rank == 0:
        signal.raise_signal(signal.SIGTERM)
        print("saved", flush=True)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_signal_that_follows_anothers_does_not_stop_the_saving(tmp_path):
    """Of two workers one hears of the other's signal first, and saves when its own comes."""
    command = [sys.executable, "-c", TOLD, str(tmp_path / "store")]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (0, "saved\n"), ended.stderr


def test_training_in_a_thread(engine, config_file, tmp_path, caplog):
    """As in a window's or a server's program."""
    if engine == "detectron2":
        from smca.d2 import register_datasets
        from smca.d2.predictor import Detectron2Host
        from smca.d2.trainer import Trainer

        cfg = prepare(Detectron2Host.read(config_file("DATALOADER.NUM_WORKERS", 1)))
        register_datasets(cfg)
    else:
        from smca.native.trainer import Trainer

        cfg = prepare(load_cfg(smca.get_cfg(), config_file("DATALOADER.NUM_WORKERS", 1)))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=lambda: Trainer(cfg).train())
    thread.start()
    thread.join()
    assert (tmp_path / "out/model_final.pth").exists()
    assert caplog.text.count("in a thread: Ctrl-C and SIGTERM save no checkpoint") == 1
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
