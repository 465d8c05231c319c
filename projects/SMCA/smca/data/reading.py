"""Which file each loader process is reading, so that an error about a dead process names it."""

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
_CRASH = "if that file crashes its decoder again, replace it or take it out of the annotations"
# Seconds between the end of a process's connections and the signal of its end, at most.
_SIGNAL_DELAY = 0.5


class Note(ctypes.Structure):
    """A loader process and the file that it is reading, in shared memory."""

    _fields_ = (("pid", ctypes.c_int64), ("file_name", ctypes.c_char * 4096))


# The notes of this process's loaders, and its own note if it is a loader process.
_notes: list[ctypes.Array[Note]] = []
_own: Note | None = None


def make_notes(count: int) -> ctypes.Array[Note]:
    """Make a note for each process of a new loader."""
    # Drop the places of loaders that have ended, so that they do not accumulate.
    _notes[:] = [notes for notes in _notes if any(map(_may_live, notes))]
    _notes.append(RawArray(Note, count))
    return _notes[-1]


def _may_live(own: Note) -> bool:
    if own.pid == 0:
        return True  # not started yet
    try:
        os.kill(own.pid, 0)
    except OSError:
        return False
    return True


def claim_note(own: Note) -> None:
    """Let :func:`note` write to ``own`` in this loader process."""
    global _own
    own.pid = os.getpid()
    _own = own


def note(file_name: str) -> None:
    """Note that this loader process begins to read a file; "" once it has handed over a batch."""
    if _own is not None:
        _own.file_name = os.fsencode(file_name)[: Note.file_name.size - 1]


def explain_end(error: BaseException) -> LoaderError | None:
    """Turn an error that a dead loader process caused into one that names the file it was reading.

    Returns None for other errors.
    """
    if isinstance(error, (EOFError, OSError)) and error.__cause__ is None and _notes:
        # The connection to a process may have broken before torch hears, by a signal, that the
        # process has ended.
        try:
            time.sleep(_SIGNAL_DELAY)
        except RuntimeError as news:
            error.__cause__ = news
    text = f"{error} {error.__cause__}"
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ", text)
    if not found:
        return None
    pids = {int(pid) for pid in found[1].split(",")}
    names = [os.fsdecode(own.file_name) for notes in _notes for own in notes if own.pid in pids]
    file_name = names[0] if names else ""
    doing = f"while it read {file_name}" if file_name else "between two batches"
    number = _signal_in(text)
    how = "ended by itself" if number is None else f"was ended by {signal.Signals(number).name}"
    remedy = _REMEDIES.get(number, _CRASH if file_name else "")
    return LoaderError(f"a loader process {how} {doing}" + (f"; {remedy}" if remedy else ""))


def _signal_in(text: str) -> int | None:
    """Return the number of the signal that torch's message names."""
    names = {signal.strsignal(number): number for number in signal.valid_signals()}
    found = re.search(r"killed by signal: ([^.]*)\.", text)
    return names.get(found[1]) if found else None
