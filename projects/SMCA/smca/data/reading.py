"""What loader processes are reading, so that the end of one names a file."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from multiprocessing.sharedctypes import RawArray

from ..errors import LoaderError

_REMEDIES = {
    signal.SIGKILL: "the machine has probably run out of memory: lower DATALOADER.NUM_WORKERS",
    signal.SIGBUS: (
        "shared memory (/dev/shm) is probably full: enlarge it (docker run --shm-size), or lower "
        "DATALOADER.NUM_WORKERS"
    ),
}
# Seconds from the end of a process's connections to the signal of its end, at most.
_NEWS_TAKES = 0.5
_CRASH = "if that file crashes its decoder again, replace it or take it out of the annotations"


class Place(ctypes.Structure):
    """Where a loader process notes what it reads; in shared memory."""

    _fields_ = (("pid", ctypes.c_int64), ("file_name", ctypes.c_char * 4096))


# Of the loaders of this process.
_places: list[ctypes.Array[Place]] = []
# Of this process itself, if it is a loader's.
_own: Place | None = None


def make_places(count: int) -> ctypes.Array[Place]:
    """Places for the processes of a new loader."""
    _places[:] = [places for places in _places if any(map(_may_live, places))]
    _places.append(RawArray(Place, count))
    return _places[-1]


def _may_live(place: Place) -> bool:
    if place.pid == 0:
        return True  # not started yet
    try:
        os.kill(place.pid, 0)
    except OSError:
        return False
    return True


def take_place(place: Place) -> None:
    """Have :func:`note` of this process, a loader's, write to ``place``."""
    global _own
    place.pid = os.getpid()
    _own = place


def note(file_name: str) -> None:
    """Note that this process begins to read a file; "" after it has handed over a batch."""
    if _own is not None:
        _own.file_name = os.fsencode(file_name)[: Place.file_name.size - 1]


def explain_end(error: BaseException) -> LoaderError | None:
    """What follows from the end of a loader process, as an error that names the file it read.

    None for other errors.
    """
    if isinstance(error, (EOFError, OSError)) and error.__cause__ is None and _places:
        # Of a batch that was on its way, perhaps; then torch learns of its process's end now.
        try:
            time.sleep(_NEWS_TAKES)
        except RuntimeError as news:
            error.__cause__ = news
    text = f"{error} {error.__cause__}"
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ", text)
    if not found:
        return None
    pids = {int(pid) for pid in found[1].split(",")}
    place = next((p for places in _places for p in places if p.pid in pids), None)
    file_name = os.fsdecode(place.file_name) if place else ""
    doing = f"while it read {file_name}" if file_name else "between two batches"
    number = _signal_in(text)
    how = "ended by itself" if number is None else f"was ended by {signal.Signals(number).name}"
    remedy = _REMEDIES.get(number, _CRASH if file_name else "")
    return LoaderError(f"a loader process {how} {doing}" + (f"; {remedy}" if remedy else ""))


def _signal_in(text: str) -> int | None:
    """The signal that a text of torch names."""
    names = {signal.strsignal(number): number for number in signal.valid_signals()}
    found = re.search(r"killed by signal: ([^.]*)\.", text)
    return names.get(found[1]) if found else None
