"""Stop between two iterations on Ctrl-C or SIGTERM, so that a checkpoint can be saved."""

from __future__ import annotations

import logging
import signal
import threading
import time
from typing import Any

import torch
import torch.distributed as dist

from ..data.reading import explain_end
from .guard import lost_worker

logger = logging.getLogger(__name__)

# A terminal and a launcher may both pass on one signal, within so many seconds.
_SAME_SIGNAL = 1.0
# Workers agree on stopping every so many iterations.
_AGREE_EVERY = 10


class StopRequest:
    """Remembers SIGINT and SIGTERM while it is entered; a second signal acts at once.

    Only Python's main thread can: elsewhere signals act as they did before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since: float | None = None  # time of the first signal to this process
        self._previous: dict[int, Any] = {}
        self._group: Any = None  # torch.distributed's

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        else:  # where Python allows no handlers
            logger.warning("training in a thread: Ctrl-C and SIGTERM save no checkpoint")
        if dist.is_initialized():
            # gloo asks on the host, without a device synchronisation.
            self._group = dist.new_group(backend="gloo")
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        self._restore()
        # torchrun's report lacks what our line says of a lost worker.
        lost = error and not dist.is_torchelastic_launched() and lost_worker(error)
        if self.signal and error and (explain_end(error) or lost):
            # It was in an evaluation, before which a checkpoint was saved; or a worker has failed,
            # which says why, and the launcher ends the others.
            logger.warning("stopped at once: a loader process or another worker has ended")
            raise SystemExit(self.exit_code) from None

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, frame) -> None:
        if self._since is None:
            # Another worker may have reported its signal before.
            self.signal, self._since = self.signal or number, time.monotonic()
            name = signal.Signals(number).name
            logger.warning("%s: saving a checkpoint and stopping; again to stop at once", name)
            # Loader processes may have got the signal too. torch's handler for their end would
            # raise within an iteration; without it, the next wait for a batch raises.
            self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        elif time.monotonic() - self._since > _SAME_SIGNAL:
            self._restore()
            signal.raise_signal(number)

    def agreed(self, iteration: int) -> bool:
        """Return whether all workers stop after ``iteration``."""
        if self._group is None:
            return self.signal is not None
        if (iteration + 1) % _AGREE_EVERY:
            return False
        number = torch.tensor(self.signal or 0)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        self.signal = int(number) or None
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a program that a signal ended, 128 + the signal's number."""
        return 128 + (self.signal or 0)
