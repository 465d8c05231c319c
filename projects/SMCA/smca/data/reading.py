"""Which file each loader process is reading, so that an error about a dead process names it."""

import ctypes
import os
import re
import signal
import time
import weakref
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
# The end of a loader process in torch's words: its number, and a name of the signal, "Killed".
_ENDED = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]*))?"
# Seconds between the end of a process's connections and the signal of its end, at most.
_SIGNAL_DELAY = 0.5


class Note(ctypes.Structure):
    """A loader process and the file that it is reading, in shared memory."""

    _fields_ = (("pid", ctypes.c_int64), ("file_name", ctypes.c_char * 4096))


# The notes of this process's loaders while they exist, and its own note if it is a loader process.
_notes: weakref.WeakValueDictionary[int, ctypes.Array[Note]] = weakref.WeakValueDictionary()
_own: Note | None = None


def make_notes(count: int) -> ctypes.Array[Note]:
    """Make a note for each process of a new loader, which has to keep them."""
    notes = RawArray(Note, count)
    _notes[id(notes)] = notes
    return notes


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
    # The cause, where there is one, names the signal.
    found = re.search(_ENDED, f"{error.__cause__} {error}")
    if not found:
        return None
    pids = {int(pid) for pid in found[1].split(",")}
    names = [own.file_name for notes in _notes.values() for own in notes if own.pid in pids]
    file_name = os.fsdecode(names[0]) if names else ""
    doing = f"while it read {file_name}" if file_name else "between two batches"
    number = {signal.strsignal(number): number for number in signal.Signals}.get(found[2])
    how = f"was ended by {number.name}" if number else "ended by itself"
    remedy = _REMEDIES.get(number, _CRASH if file_name else "")
    return LoaderError(f"a loader process {how} {doing}" + (f"; {remedy}" if remedy else ""))
