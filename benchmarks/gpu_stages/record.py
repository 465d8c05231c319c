"""Read and write the file of a GPU check: its runs, their stages, and the measured rows."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
PACKAGE = BENCHMARKS.parent / "projects/SMCA/smca"
FILE = "gpu_check.json"
RUNNING, DONE, FAILED = "running", "done", "failed"
CUT_OFF, STOPPED = "cut off", "stopped"


def code_hash() -> str:
    """Return a hash of the measured and the measuring code, to tell results of other code apart."""
    digest = hashlib.sha256()
    for path in sorted(_measured()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _measured() -> Iterator[Path]:
    for folder in (PACKAGE / "modeling", PACKAGE / "training", BENCHMARKS / "gpu_stages"):
        yield from folder.glob("*.py")
    yield BENCHMARKS / "gpu_check.py"


def read_runs(path: Path) -> list[dict]:
    """Return the runs of a file.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: the file was not written by :class:`Record`, or is damaged.
    """
    try:
        runs = json.loads(path.read_text())
        whole = isinstance(runs, list) and all("stages" in run for run in runs)
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        # This imports torch, which writing a record does not need.
        from smca.config import ConfigError

        raise ConfigError(f"{path} is not a gpu_check.json, or damaged; move it away")
    return runs


class Record:
    """Append to a file that stays complete even if a process stops while it writes.

    The program and the process of its running stage never write at the same time.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE

    def runs(self) -> list[dict]:
        """Return the runs recorded so far."""
        return read_runs(self.path) if self.path.exists() else []

    def begin_run(self, **facts: object) -> None:
        """Append a run without stages."""
        self._write([*self.runs(), {**facts, "code": code_hash(), "stages": []}])

    def begin_stage(self, name: str, limit: float) -> None:
        """Append a running stage, with its time limit in seconds, to the last run."""
        runs = self.runs()
        stage = {"stage": name, "status": RUNNING, "limit": round(limit), "reason": "", "rows": []}
        runs[-1]["stages"].append(stage)
        self._write(runs)

    def add(self, row: dict) -> None:
        """Add a row to the running stage."""
        runs = self.runs()
        runs[-1]["stages"][-1]["rows"].append(row)
        self._write(runs)

    def end_stage(self, **facts: object) -> dict:
        """Add facts, such as the status, to the running stage, and return the stage."""
        runs = self.runs()
        runs[-1]["stages"][-1] |= facts
        self._write(runs)
        return runs[-1]["stages"][-1]

    def _write(self, runs: list[dict]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(_plain(runs), indent=1))
        part.replace(self.path)


def _plain(value: object) -> object:
    """Return a value that JSON can hold: without dataclasses, infinite numbers and NaN."""
    if is_dataclass(value):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value
