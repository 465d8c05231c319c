"""Stopping by a signal that goes to loader processes, too, as that of a batch system does."""

import multiprocessing
import signal

import pytest

from smca.data.loader import list_loader
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
