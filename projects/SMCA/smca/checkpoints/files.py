"""Checkpoint files: read without running code from them, written whole or not at all.

Every file is read into one form: ``{"model": {Detectron2 name: tensor}, ...}``. A run that averages
its weights adds ``"ema"``, of the same names; one that knows its classes ``"class_names"``, a list.
"""

from __future__ import annotations

import contextlib
import os
import re
import reprlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import CONTROLS, CheckpointError
from .arrays import StoredArray, read_pickle, scan_pickle


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint of this project, a torchvision ResNet or one of Detectron2's model zoo.

    Returns:
        the file's content, with ``"model"`` and, where the file has it, ``"ema"`` dicts of tensors
        under Detectron2's names.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, of another kind, or asks to run code.
    """
    content = read_tensors(path)
    if "ema" in content:
        content["ema"] = _tensors(content["ema"], "ema", os.fspath(path))
    return {**content, "model": detectron2_names(content["model"])}


def damage(path: str | os.PathLike) -> str | None:
    """What is wrong with a file that :func:`write_checkpoint` has written; None if it is whole.

    The file has a checksum of each of its parts, which torch does not look at when it reads.
    """
    try:
        with zipfile.ZipFile(path) as file:
            # torch stores its parts as they are; what is packed may be of any size unpacked.
            if any(part.compress_type != zipfile.ZIP_STORED for part in file.infolist()):
                return "its parts are compressed, which those of a checkpoint are not"
            if sum(part.file_size for part in file.infolist()) > os.path.getsize(path):
                return "its parts are larger than it is"
            part = file.testzip()
    # Damage has many ways to show.
    except Exception as error:
        return str(error) or type(error).__name__
    return f"{part!r} is not what was written" if part else None


def read_tensors(path: str | os.PathLike) -> dict:
    """:func:`read_checkpoint`, with the names as they are in the file."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        remedy = "; download it, and name the file" if "://" in path else ""
        raise FileNotFoundError(f"checkpoint {path!r} {what}{remedy}")
    if zipfile.is_zipfile(path) and (fault := damage(path)):
        raise CheckpointError(f"{path} is damaged: {fault}")
    try:
        if path.endswith(".pkl") and not zipfile.is_zipfile(path):
            content = read_pickle(path)
        else:
            _scan(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # Damaged files fail in too many ways to list.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if refused := re.search(r"\bGLOBAL (\S+)", str(error)):
            reason = f"refused to load {refused[1]}, only tensors are read"
            if refused[1] == "argparse.Namespace":
                reason += " (if it is one that others released, tools/convert_checkpoint.py can)"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    content = dict(content)
    _check_class_names(content.get("class_names"), path)
    model = content.get("model", content)
    caffe2 = isinstance(model, Mapping) and "conv1_w" in model
    if content.get("__author__") == "Caffe2" or "blobs" in content or caffe2:
        raise CheckpointError(
            f"{path} holds Caffe2's ResNet; take a torchvision-layout one, "
            "such as detectron2://ImageNetPretrained/torchvision/R-50.pkl"
        )
    tensors = _tensors(model, "model", path)
    return {**content, "model": tensors} if "model" in content else {"model": tensors}


def _scan(path: str) -> None:
    """:func:`scan_pickle` for the pickles of torch's files."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            begin = file.read(32)
        if begin.startswith(b"PK"):
            raise CheckpointError("it cannot be read to its end, which is cut off; copy it again")
        if not begin.startswith(b"\x80"):
            raise CheckpointError(f"it cannot be read: torch.save begins no file with {begin!r}")
        # As torch wrote before 1.6: five pickles and the numbers.
        with open(path, "rb") as file:
            for _ in range(5):
                scan_pickle(file)
        return
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.endswith(".pkl"):
                with file.open(name) as part:
                    scan_pickle(part)


def _tensors(part: object, key: str, path: str) -> dict[str, Tensor]:
    if not isinstance(part, Mapping) or not part:
        raise CheckpointError(f"{path} holds no tensors under {key!r}")
    arrays = {id(value): value for value in part.values() if isinstance(value, StoredArray)}
    # Many arrays may be made of the same bytes.
    if sum(array.nbytes for array in arrays.values()) > os.path.getsize(path):
        raise CheckpointError(f"{path} holds arrays that are larger than it is")
    return {name: _tensor(value, name, path) for name, value in part.items()}


def _tensor(value: object, name: object, path: str) -> Tensor:
    place = f"{path}: {reprlib.repr(name)}"
    if not isinstance(name, str) or not name.isprintable():
        raise CheckpointError(f"{place} is not a tensor's name")
    if isinstance(value, StoredArray):
        try:
            return value.tensor()
        except CheckpointError as error:
            raise CheckpointError(f"{place}: {error}") from error
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{place} is a {type(value).__name__}, not a tensor")
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not plain or value.is_complex():
        raise CheckpointError(
            f"{place} is a tensor of {value.dtype}, {value.layout} on {value.device}; "
            "only plain ones on the CPU are read"
        )
    # One number can be spread over a shape of any size.
    if value.nbytes > value.untyped_storage().nbytes():
        raise CheckpointError(
            f"{place} has shape {tuple(value.shape)}, of which the file does not hold all"
        )
    return value


def _check_class_names(names: object, path: str) -> None:
    if names is None:
        return
    plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not plain or CONTROLS.search("".join(names)):
        raise CheckpointError(
            f"{path} has class_names {reprlib.repr(names)}; they must be a list of names"
        )


_TORCHVISION = (
    (re.compile(r"^layer(\d)\."), lambda m: f"res{int(m[1]) + 1}."),
    (re.compile(r"^(conv1|bn1)\."), r"stem.\1."),
    (re.compile(r"\bbn(\d)\."), r"conv\1.norm."),
    (re.compile(r"\bdownsample\.0\."), "shortcut."),
    (re.compile(r"\bdownsample\.1\."), "shortcut.norm."),
)


def detectron2_names(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a bare ResNet's tensors, torchvision's or Detectron2's, to ``backbone.res2...``.

    Tensors of a whole detector keep their names. The classifier ``fc`` of a bare ResNet is dropped.
    """
    if "layer1.0.conv1.weight" in model:
        renamed = {}
        for name, tensor in model.items():
            for pattern, replacement in _TORCHVISION:
                name = pattern.sub(replacement, name)
            renamed[name] = tensor
        model = renamed
    if "stem.conv1.weight" not in model:
        return dict(model)
    return {
        f"backbone.{name}": tensor
        for name, tensor in model.items()
        if name.startswith(("stem.conv1.", "res"))
    }


def write_checkpoint(content: dict, path: str | os.PathLike) -> None:
    """Write a file that :func:`read_checkpoint` reads, see :func:`write_whole`."""
    write_whole(path, lambda file: torch.save(content, file))


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is whole or not there: to a temporary name, synced, then renamed.

    Args:
        path: what is there is replaced.
        write: writes the content.

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
        # torch's writer hides what the system has said.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"{path} cannot be written: {cause.strerror}. What was written before is whole; when "
            "there is room, --resume goes on from there"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Have a renamed file keep its name when the machine fails."""
    # Not every system opens folders, nor does every network disk sync them.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
