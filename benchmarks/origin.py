"""Record the origin of a benchmark's numbers: command, commit, machine and software."""

import json
import os
import platform
import subprocess
from pathlib import Path

import torch
import torchvision

_FILE = "starts.json"


def describe(command: str, *, threads: str, device: str | None = None) -> dict[str, str]:
    """Return the origin to print beside a number: command, commit, machine and software.

    Args:
        command: the program's command line.
        threads: a text about the number of CPU threads.
        device: torch's name of the device; by default CUDA if there is a GPU.
    """
    commit = _git("rev-parse", "--short=10", "HEAD") or "unknown"
    # Results that a benchmark has just written are no changes of the code.
    if _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results"):
        commit += ", with changes"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    software = f"Python {platform.python_version()}, torch {torch.__version__}"
    processor = _cpu_name()
    if device.startswith("cuda"):
        processor = torch.cuda.get_device_name(device)
        software += f", CUDA {torch.version.cuda}"
    return {
        "command": f"`{command}`",
        "commit": commit,
        "machine": f"{processor}, {os.cpu_count()} CPU cores, {threads}",
        "software": f"{software}, torchvision {torchvision.__version__}",
    }


def record_start(folder: Path) -> None:
    """Append the origin of this start of a training run to the record in its folder."""
    start = describe("", threads=f"OMP_NUM_THREADS {os.getenv('OMP_NUM_THREADS', 'not set')}")
    path = folder / _FILE
    before = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*before, start], indent=1))


def starts(folder: Path) -> dict[str, str]:
    """Return commit, machine and software of a run's starts, each value once."""
    recorded = json.loads((folder / _FILE).read_text())
    return {
        key: "; ".join(dict.fromkeys(start[key] for start in recorded))
        for key in ("commit", "machine", "software")
    }


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    try:
        found = subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line[:10] == "model name")
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
