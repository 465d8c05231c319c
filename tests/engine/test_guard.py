"""Which errors are told in one line."""

import errno
import io
import os
import re
import sys
from pathlib import Path

import pytest

from smca.engine.guard import explain, guarded
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


def test_a_name_that_the_terminal_cannot_show_is_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert guarded(terminal.writelines, ["\u732b caf\xe9\n"]) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"\\u732b caf\xe9\n"


def test_every_program_is_guarded():
    root = Path(__file__).parents[2]
    programs = [*root.glob("*.py"), *root.glob("tools/*.py"), *root.glob("projects/**/train.py")]
    texts = {path: path.read_text() for path in programs if path.name != "setup.py"}
    texts = {path: text for path, text in texts.items() if "__main__" in text}
    assert len(texts) > 12
    for path, text in texts.items():
        assert re.search(r"return guarded\(|from smca.train import main", text), path
