"""train_net.py, started by forks of a process that has imported what it needs.

Importing would take most of the time of short runs. A process of its own therefore imports what the
program does, once, and forks before it has any thread; each fork runs train_net.py itself.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "projects/SMCA"), "OMP_NUM_THREADS": "1"}
# By its value the processes of a test are known.
MARK = "TEST_KILLS"
# A line in is [arguments, log file]; lines out are the fork's number and, when it ends, its code.
FORKS = """
import importlib, json, os, runpy, sys

for module in sys.argv[1:]:
    importlib.import_module(module)
assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost in the fork"
for line in sys.stdin:
    arguments, log = json.loads(line)
    fork = os.fork()
    if fork == 0:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    os.setpgid(fork, fork)
    print(fork, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)
"""


class Program:
    """Starts train_net.py by forks of a process that has imported what it needs."""

    def __init__(self, engine, log):
        self.engine, self.log = engine, log
        launch = {"native": "smca.native.launch", "detectron2": "smca.d2.launch"}[engine]
        self.forks = subprocess.Popen(
            [sys.executable, "-c", FORKS, "smca.train", launch, "torch.utils.tensorboard"],
            cwd=ROOT,
            env={**ENVIRONMENT, MARK: str(log)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def start(self, *arguments):
        """Begin a run."""
        arguments = ["train_net.py", "--engine", self.engine, *map(str, arguments)]
        self.forks.stdin.write(json.dumps([arguments, str(self.log)]).encode() + b"\n")
        self.number = int(self.forks.stdout.readline())  # of its process, which leads a group

    def ended(self):
        return bool(select.select([self.forks.stdout], [], [], 0)[0])

    def wait(self):
        """The exit code, negative for a signal's number."""
        return int(self.forks.stdout.readline())

    def kill(self):
        """Kill the group of the run unless it has ended; returns its exit code."""
        if not self.ended():
            os.killpg(self.number, signal.SIGKILL)
        return self.wait()

    def left(self):
        """The processes that are there beside the one that forks: loaders outlive their trainer."""
        mark, found = f"{MARK}={self.log}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may end meanwhile
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return set(found) - {self.forks.pid}

    def close(self):
        self.forks.stdin.close()
        self.forks.wait(timeout=60)
