"""Code that hostile files would run, and a limit of memory."""

import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest


class Payload:
    """Makes a folder when a careless reader loads it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def payload(tmp_path):
    """A :class:`Payload`, whose code has not run when the test is over."""
    made = tmp_path / "made"
    yield Payload(made)
    assert not made.exists()


@pytest.fixture
def little_memory():
    """``with little_memory(256):`` this process may take so many MiB more, or gets no more."""

    @contextmanager
    def limited(mebibytes):
        if sys.platform != "linux":
            yield
            return
        before = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + mebibytes * 2**20, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return limited
