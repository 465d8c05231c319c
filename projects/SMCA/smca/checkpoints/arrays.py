"""Pickles of NumPy arrays, such as Detectron2's model zoo has, read without NumPy's own unpickling.

Nothing is called but what is below, which copies nothing: whoever wrote the file may have wanted
code to run, or the memory to fill up.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
import re
from collections import OrderedDict
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

_NUMBERS = re.compile(r"[fiu][1248]|b1")
_MOST_AXES = 32
# A tensor has five tuples and 50 parts in all.
_MOST_TUPLES, _MOST_PARTS = 80_000, 4_000_000


class Dtype:
    """Stands for NumPy's dtype, of numbers alone."""

    def __init__(self, code: str, *_: object):
        if not _NUMBERS.fullmatch(code):
            raise CheckpointError(
                f"refused to load an array of {code!r:.80}: only numbers are read"
            )
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class StoredArray:
    """Stands for an array, whose numbers are still as they are in the file.

    Attributes:
        dtype: of the numbers.
        shape: of the array.
        by_columns: the first axis is the one that changes fastest.
        data: bytes; or a string of such, a character each.
    """

    def __init__(self):
        self.__setstate__((1, (0,), Dtype("f4"), False, b""))

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, by_columns, data = state
        if len(shape) > _MOST_AXES or not all(type(side) is int and side >= 0 for side in shape):
            raise CheckpointError("an array has a shape that is none")
        self.shape, self.dtype = shape, dtype.dtype
        self.by_columns, self.data = bool(by_columns), data
        if self.nbytes != len(data):
            raise CheckpointError(f"an array of shape {shape} has {len(data)} bytes")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The numbers, on the CPU.

        Raises:
            CheckpointError: its string is not one of bytes.
        """
        array = _numbers(self.data, self.dtype).reshape(
            self.shape, order="F" if self.by_columns else "C"
        )
        return torch.from_numpy(array.astype(self.dtype.newbyteorder("=")))


def read_pickle(path: str | os.PathLike) -> object:
    """The containers, numbers and strings of a file, and a :class:`StoredArray` for each array.

    Raises:
        CheckpointError: it asks for something else.
        Exception: it is damaged, in one of many ways.
    """
    with open(path, "rb") as file:
        scan_pickle(file)
        file.seek(0)
        return _ArrayUnpickler(file, encoding="latin1").load()


def scan_pickle(file: BinaryIO) -> None:
    """See that loading the pickle that begins here fills neither the memory nor the stack.

    Args:
        file: which is read up to the pickle's end.

    Raises:
        CheckpointError: it would.
        Exception: it is damaged, in one of many ways.
    """
    tuples = 0
    for number, (opcode, argument, place) in enumerate(pickletools.genops(file)):
        # Python makes room for as many objects as the number says.
        if "PUT" in opcode.name and isinstance(argument, int) and argument > place:
            raise CheckpointError("it numbers objects that it does not have")
        # The hash of a tuple in a tuple in a tuple ... has no bound.
        tuples += opcode.name.startswith(("TUPLE", "FROZENSET"))
        if tuples > _MOST_TUPLES or number > _MOST_PARTS:
            raise CheckpointError("it has more parts than any checkpoint")


def _numbers(data: str | bytes, dtype: np.dtype) -> np.ndarray:
    try:
        return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)
    except ValueError as error:
        raise CheckpointError(f"an array's data is none: {error}") from error


def _reconstruct(kind: object, *_: object) -> StoredArray:
    if kind is not _NDARRAY:
        raise CheckpointError("refused to load another kind of array than NumPy's own")
    return StoredArray()


def _scalar(dtype: Dtype, data: str | bytes) -> object:
    if len(data) != dtype.dtype.itemsize:
        raise CheckpointError(f"a number of type {dtype.dtype} has {len(data)} bytes")
    return _numbers(data, dtype.dtype)[0].item()


_NDARRAY = object()
# What NumPy arrays and plain containers need, under the names of NumPy 1 and 2; nothing else.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Dtype,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
    # How Python 3 pickles bytes in the protocol of Python 2: they stay a string.
    ("_codecs", "encode"): lambda text, _encoding="latin1": text,
    ("__builtin__", "bytes"): lambda: b"",
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and arrays; refuses everything else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise CheckpointError(f"refused to load {module}.{name}: only arrays are read")
        return _ALLOWED[module, name]
