"""Which errors are told in one line."""

import errno
import os

import pytest

from smca.engine.guard import explain
from smca.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "explanation"),
    [
        (ConfigError("KEY is 1"), (2, "ConfigError: KEY is 1")),
        (FloatingPointError("not finite"), (3, "FloatingPointError: not finite")),
        (
            OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)),
            (2, f"OSError: [Errno {errno.EADDRINUSE}] Address already in use"),
        ),
        (ConfigError("a \x1b[31mred\n line"), (2, "ConfigError: a \\x1b[31mred\n line")),
        (RuntimeError("a mistake of ours"), None),
    ],
)
def test_errors_that_a_user_can_mend_have_a_code_and_a_line(error, explanation):
    assert explain(error) == explanation


def test_a_full_disk_has_a_remedy():
    code, line = explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "log.txt"))
    assert code == 2 and "'log.txt'; give the place the room" in line
