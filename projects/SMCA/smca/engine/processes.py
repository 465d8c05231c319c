"""The workers of a machine as processes of this one: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from ..distributed import end_with_parent
from ..errors import WorkerError
from .guard import Explanation, outcome

# Seconds that the others have to end after one has failed, or after a signal has stopped the run.
_AFTER_FAILURE, _AFTER_STOP = 5.0, 30.0
_LOOKS_EVERY = 0.1
# So much of a traceback fits into a pipe that nobody reads yet.
_LONGEST_MESSAGE = 20_000


@dataclass
class _Worker:
    """A process as this one sees it.

    Attributes:
        name: what messages call it.
        process, pipe: itself, and where it says how it ended.
        said: that.
        exit_code: None while it runs.
        killed: by this process.
    """

    name: str
    process: BaseProcess
    pipe: Connection
    said: Explanation | None = None
    exit_code: int | None = None
    killed: bool = False

    def look(self) -> None:
        # In this order: it speaks before it ends. What it started may hold its sentinel and pipe.
        self.exit_code = self.process.exitcode
        if self.said is None and self.pipe.poll():
            with contextlib.suppress(EOFError):
                self.said = self.pipe.recv()

    def failure(self, advice: str) -> Explanation | None:
        """What there is to say if it has failed, or has ended without having done its work."""
        if self.said and self.said.code:
            return self.said
        if self.exit_code is None or self.killed or (self.said and self.exit_code == 0):
            return None
        if self.exit_code >= 0:
            how = f"ended with exit code {self.exit_code} before its work was done"
            code = self.exit_code or 1
        else:
            how = f"was ended by {signal.Signals(-self.exit_code).name}"
            code = 128 - self.exit_code
        if self.exit_code == -signal.SIGKILL:
            how += ", most likely because the machine has run out of memory"
        message = f"{WorkerError.__name__}: {self.name} {how}{advice}"
        # NCCL has a worker abort that waits for another one in vain.
        return Explanation(code, message, follows=self.exit_code == -signal.SIGABRT)


def run_together(
    work: Callable[..., None], arguments: Sequence[tuple], names: Sequence[str], *, advice: str = ""
) -> int:
    """Run ``work(*arguments[i])`` in a process each; returns 0, or the exit code of what failed.

    When one fails, all are ended within seconds, and the message of the first is printed, the last
    of all. Should this process be killed, they end too.

    Args:
        work: a function that can be pickled.
        arguments: that can be, too.
        names: what messages call the processes.
        advice: said after the end of one that has not said why.
    """
    with _signals_to_children():
        workers = [
            _start(name, work, values) for name, values in zip(names, arguments, strict=True)
        ]
        failures = _wait(workers, advice)
    if not failures:
        return 0
    # Of those that end at once, one is the cause of the others. If none says so, one that has not
    # said how it ended may be.
    first = min(failures, key=lambda failure: (failure.follows, failure.code <= 128))
    message = first.message
    if first.follows and (hung := [worker.name for worker in workers if worker.killed]):
        message += f"; {', '.join(hung)} did not end and was killed"
    if message:
        print(message, file=sys.stderr, flush=True)
    return first.code


def _start(name: str, work: Callable[..., None], arguments: tuple) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sending, name, work, arguments))
    process.start()
    sending.close()
    return _Worker(name, process, receiving)


def _run(pipe: Connection, name: str, work: Callable[..., None], arguments: tuple) -> None:
    """What a process does."""
    end_with_parent(grace=_AFTER_STOP)
    try:
        end = outcome(work, *arguments)
    except KeyboardInterrupt:
        end = Explanation(128 + signal.SIGINT, "", follows=False)
    except Exception:
        message = f"{name}:\n{traceback.format_exc().strip()[-_LONGEST_MESSAGE:]}"
        end = Explanation(1, message, follows=False)
    with contextlib.suppress(OSError):  # nobody listens any more
        pipe.send(end)
    sys.exit(end.code)


def _wait(workers: Sequence[_Worker], advice: str) -> list[Explanation]:
    """Wait until all have ended; what has failed, in this order."""
    failed: list[_Worker] = []
    failures: list[Explanation] = []
    until = float("inf")
    while any(worker.exit_code is None for worker in workers):
        time.sleep(_LOOKS_EVERY)
        for worker in workers:
            worker.look()
            failure = worker.failure(advice)
            if failure and worker not in failed:
                failed.append(worker)
                failures.append(failure)
                grace = _AFTER_STOP if failure.code > 128 and worker.said else _AFTER_FAILURE
                until = min(until, time.monotonic() + grace)
            if worker.exit_code is None and time.monotonic() > until:
                worker.killed = True
                worker.process.kill()
    return failures


@contextlib.contextmanager
def _signals_to_children() -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the worker processes and wait for them, instead of dying."""

    def forward(number: int, _frame) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)

    previous = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
