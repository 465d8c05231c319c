"""Checkpoint files: read without running code from them, written whole or not at all.

Every file is read into one form: ``{"model": {Detectron2's name: tensor}, ...}``. A run that
averages its weights adds ``"ema"``, with the same names; a run that knows its classes adds
``"class_names"``, a list.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import pickle
import re
import reprlib
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import CONTROLS, CheckpointError
from .names import WRAPPERS, detectron2_names

logger = logging.getLogger(__name__)

# Where a file has the tensors of its model: this project's and Detectron2's, or others' programs.
_PLACES = ("model", "state_dict", "model_state_dict")


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint of this project, a torchvision ResNet or a file of Detectron2's model zoo.

    The same tensors may lie under ``"state_dict"`` or ``"model_state_dict"``, have names that DDP,
    torch.compile or Lightning have lengthened, or be in a ``.safetensors`` file.

    Returns:
        the file's content, with ``"model"`` and, where the file has it, ``"ema"`` as dicts of
        tensors under Detectron2's names.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, is not a checkpoint, or asks to run code.
    """
    content = read_tensors(path)
    return {**content, "model": detectron2_names(content["model"])}


def read_tensors(path: str | os.PathLike) -> dict:
    """Read a checkpoint as :func:`read_checkpoint` does, but keep the names in the file."""
    path = os.fspath(path)
    require_file(path)
    zipped = zipfile.is_zipfile(path)
    if zipped and (fault := damage(path)):
        raise CheckpointError(f"{path} is damaged: {fault}")
    safetensors = path.endswith(".safetensors")
    if safetensors and importlib.util.find_spec("safetensors") is None:
        raise CheckpointError(f"{path} needs safetensors to be read: pip install safetensors")
    if not zipped and not safetensors:
        _refuse_other_files(path)
    try:
        if safetensors:
            from safetensors.torch import load_file

            content = load_file(path)
        elif path.endswith(".pkl") and not zipped:
            with open(path, "rb") as file:
                content = _ArrayUnpickler(file, encoding="latin1").load()
        else:
            # The authors of DETRs save their arguments too, in a namespace, which holds values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged files fail in too many ways to list.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if refused := re.search(r"\bGLOBAL (\S+)", str(error)):
            reason = f"refused to load {refused[1]}, only tensors are read"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    place = next((key for key in _PLACES if key in content), None)
    content = dict(content) if place else {"model": content}
    if place:
        content["model"] = content.pop(place)
    names = content.get("class_names") or []
    if not isinstance(names, list) or not all(map(_is_text, names)):
        raise CheckpointError(
            f"{path} has class_names {reprlib.repr(names)}; they must be a list of names"
        )
    groups = content.get("query_groups", 1)
    if not isinstance(groups, int) or groups < 1:
        raise CheckpointError(
            f"{path} has query_groups {reprlib.repr(groups)}; they must be a number from 1"
        )
    parts = {key: content[key] for key in ("model", "ema") if key in content}
    return content | {key: _tensors(part, key, path) for key, part in parts.items()}


def require_file(path: str, key: str = "") -> None:
    """Raise FileNotFoundError, naming the config key, unless a checkpoint's path is a file."""
    if not os.path.isfile(path):
        fault = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        remedy = "; download it, and name the file" if "://" in path else ""
        place = f" ({key})" if key else ""
        raise FileNotFoundError(f"checkpoint {path!r}{place} {fault}{remedy}")


def damage(path: str | os.PathLike) -> str | None:
    """Say how a file differs from what :func:`write_checkpoint` wrote; None if it is whole.

    The file has a checksum for each of its parts, which torch does not check when it reads.
    """
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except Exception as error:  # Damage shows in many ways.
        return str(error) or type(error).__name__
    return f"{part!r} is not as it was written" if part else None


def _refuse_other_files(path: str) -> None:
    """Name common files that are not checkpoints, by how they begin."""
    with open(path, "rb") as file:
        begin = file.read(32)
    if begin.startswith(b"PK"):
        raise CheckpointError(f"{path} is cut off; copy it again")
    if begin.lstrip().startswith(b"<"):
        raise CheckpointError(f"{path} is a web page, perhaps of a proxy, not a checkpoint")
    # torch before 1.6 wrote pickles.
    if not path.endswith(".pkl") and not begin.startswith(b"\x80"):
        reason = f"it begins with {begin!r}" if begin else "it is empty"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}")


def _is_text(name: object) -> bool:
    return isinstance(name, str) and not CONTROLS.search(name)


def _tensors(part: object, key: str, path: str) -> dict[str, Tensor]:
    if not isinstance(part, Mapping) or not part:
        raise CheckpointError(f"{path} holds no tensors under {key!r}")
    if isinstance(part.get("blobs"), Mapping):  # Caffe2's, with its optimizer's state
        part = {name: blob for name, blob in part["blobs"].items() if "_momentum" not in str(name)}
    tensors = {}
    for name, value in part.items():
        place = f"{path}: {reprlib.repr(name)}"
        if not _is_text(name):
            raise CheckpointError(f"{place} is not a tensor's name")
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{place} is a {type(value).__name__}, not a tensor")
        tensors[name] = value
    return _unwrapped(tensors, path)


def _unwrapped(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    names = {name: WRAPPERS.sub("", name) for name in tensors}
    first = next((name for name, own in names.items() if name != own), None)
    if first is None or len(set(names.values())) < len(names):
        return tensors
    logger.info("%s: its tensors are named as %s; %s is taken", path, first, names[first])
    return {names[name]: tensor for name, tensor in tensors.items()}


class _Dtype:
    """The type of an array's numbers.

    NumPy's own type would take flags from the file, by which numbers become addresses.
    """

    def __init__(self, code: str, *_: object):
        if not re.fullmatch("[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(
                f"refused to load an array of {code!r:.80}, only numbers are read"
            )
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that is unpickled with a :class:`_Dtype`."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, *data = state
        super().__setstate__((version, shape, dtype.dtype, *data))


def _scalar(dtype: _Dtype, data: str | bytes) -> object:
    array = _Array(())
    array.__setstate__((1, (), dtype, False, data))
    return array.item()


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, text, numbers and arrays of numbers; refuses everything else."""

    ALLOWED = {
        "collections.OrderedDict": OrderedDict,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": None,  # named as the kind to reconstruct, never called
        "numpy.core.multiarray._reconstruct": lambda *_: _Array(0),
        "numpy.core.multiarray.scalar": _scalar,
        # Python 3 writes bytes so in the protocol of Python 2.
        "_codecs.encode": lambda text, _encoding: text.encode("latin1"),
        "__builtin__.bytes": bytes,
    }

    def find_class(self, module: str, name: str) -> object:
        key = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # NumPy 2's name and 1's
        if key not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {key}, only arrays of numbers are read")
        return self.ALLOWED[key]


def write_checkpoint(content: dict, path: str | os.PathLike) -> None:
    """Write a file that :func:`read_checkpoint` reads, as :func:`write_whole` does."""
    write_whole(path, lambda file: torch.save(content, file))


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Write a file to a temporary name, sync it and rename it: it is whole or not there.

    Args:
        path: an older file there is replaced.
        write: writes the content to the open file.

    Raises:
        CheckpointError: the disk is full, or cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # torch's writer hides the system's error behind its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"{path} cannot be written: {cause.strerror}. Older files are whole; when there is "
            "room, --resume goes on from there"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Have a renamed file keep its name when the machine fails."""
    # Not every system opens folders, and not every network disk syncs them.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
