"""Benchmarks run in the tests' process."""

import gc
import json
import sys

import pytest


@pytest.fixture
def measured(monkeypatch, capsys, tmp_path):
    """``measured(program, "--flag", ...)`` runs a benchmark here: what it printed, its record."""

    def run(program, *flags):
        output = tmp_path / "record.json"
        arguments = [program.__file__, "--threads", 1, "--output", output, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        assert program.main() == 0
        return capsys.readouterr().out, json.loads(output.read_text())

    yield run
    gc.unfreeze()
