"""Measure the memory, files and threads of a process and its descendants (Linux only)."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """The memory, files and threads of a process and its descendants.

    Attributes:
        resident: bytes of the process itself in memory.
        total: bytes of all these processes, without mapped files such as libraries, which other
            programs share; memory that the processes share among themselves counts once.
        files: number of open files of all processes, without shared memory.
        shared: number of files of shared memory, such as the batches that loaders have made.
        threads, processes: numbers of threads and processes.
    """

    resident: int
    total: int
    files: int
    shared: int
    threads: int
    processes: int


def footprint(process_id: int | str = "self") -> Footprint | None:
    """Return the present footprint of a process, or None if the process has ended.

    Raises:
        FileNotFoundError: the system has no /proc.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise FileNotFoundError("/proc/self/smaps_rollup: only Linux reports footprints")
    found = []
    for folder in _family(Path("/proc") / str(process_id)):
        # A process may end in the meantime.
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
    """Return the folders in /proc of a process and of all its descendants."""
    found = [folder]
    for process in found:
        # /proc lists children by the thread that started them.
        with contextlib.suppress(OSError):
            for thread in list((process / "task").iterdir()):
                children = (thread / "children").read_text().split()
                found += [Path("/proc") / child for child in children]
    return found


def _fields(file: Path, *names: str) -> list[int]:
    """Return the numbers of the named lines in a file of /proc."""
    content = file.read_text()
    found = [re.search(rf"^{name}:\s+(\d+)", content, re.MULTILINE) for name in names]
    if not all(found):
        # The lines are missing for a process that has ended but is not yet reaped.
        raise OSError(f"{file} lacks one of {', '.join(names)}")
    return [int(number[1]) for number in found if number]
