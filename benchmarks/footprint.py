"""What a process and those it has started hold: memory, files, threads. Linux alone says so."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """
    Attributes:
        resident: bytes that a process has in memory.
        total: bytes of it and of all it has started, without those of mapped files such as
            libraries, which they share with others; what they share among them counts once.
        files: open ones of them all, but not shared memory.
        shared: files of shared memory, such as those of batches that loaders have made.
        threads, processes: of them all.
    """

    resident: int
    total: int
    files: int
    shared: int
    threads: int
    processes: int


def footprint(process_id: int | str = "self") -> Footprint | None:
    """What a process holds now; None where it has ended.

    Raises:
        FileNotFoundError: a system without /proc.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise FileNotFoundError("/proc/self/smaps_rollup: Linux alone says what processes hold")
    found = []
    for folder in _family(Path("/proc") / str(process_id)):
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            resident, *own = _fields(folder / "smaps_rollup", "Rss", "Pss_Anon", "Pss_Shmem")
            (threads,) = _fields(folder / "status", "Threads")
            shared = [_is_shared_memory(file) for file in (folder / "fd").iterdir()]
            files = len(shared) - sum(shared)
            found.append((resident * 1024, sum(own) * 1024, files, sum(shared), threads))
    if not found:
        return None
    resident, total, files, shared, threads = zip(*found, strict=True)
    return Footprint(
        resident=resident[0],
        total=sum(total),
        files=sum(files),
        shared=sum(shared),
        threads=sum(threads),
        processes=len(found),
    )


def _is_shared_memory(file: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(file).startswith("/dev/shm/")
    return False


def _family(folder: Path) -> list[Path]:
    """The folders in /proc of a process and of all that have come of it."""
    found = [folder]
    for process in found:
        # Each thread has its own children.
        with contextlib.suppress(OSError):
            for thread in list((process / "task").iterdir()):
                children = (thread / "children").read_text().split()
                found += [Path("/proc") / child for child in children]
    return found


def _fields(file: Path, *names: str) -> list[int]:
    content = file.read_text()
    found = [re.search(rf"^{name}:\s+(\d+)", content, re.MULTILINE) for name in names]
    if not all(found):
        # So it reads where the process has ended, but nobody has asked for its exit code.
        raise OSError(f"{file} lacks one of {', '.join(names)}")
    return [int(number[1]) for number in found if number]
