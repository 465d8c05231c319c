"""Weights that are named by an address: fetched once, into the cache that Detectron2 has too."""

from __future__ import annotations

import os
import posixpath
import shutil
from http.client import HTTPException
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from iopath.common.file_io import file_lock, get_cache_dir
from portalocker import LockException
from tqdm import tqdm

from ..errors import CheckpointError
from .files import read_tensors

_PREFIX, _DETECTRON2 = "detectron2://", "https://dl.fbaipublicfiles.com/detectron2/"
# Seconds that a server may be silent.
_PATIENCE = 60.0


def fetch(weights: str | os.PathLike) -> str:
    """The path of a checkpoint, which is fetched if it is named by an address.

    Of the processes of a machine one fetches, and the others wait for it. What is in the cache is
    read before it is used: a file that was cut off, or is no checkpoint, is fetched again.

    Args:
        weights: a path; or an address, ``detectron2://``, ``https://`` or ``http://``. Addresses of
            other kinds are returned as they are.

    Raises:
        CheckpointError: the file cannot be had; the message says where it may be put.
    """
    weights = os.fspath(weights)
    url = weights.replace(_PREFIX, _DETECTRON2, 1) if weights.startswith(_PREFIX) else weights
    if not url.lower().startswith(("https://", "http://")):
        return weights
    try:
        place = cache_place(url)
    except ValueError as error:
        raise CheckpointError(
            f"MODEL.WEIGHTS: {weights} is no address of a file: {error}"
        ) from error
    if (there := _fault(place)) is None:
        return place
    try:
        with file_lock(place):
            if _fault(place) is None:  # another process was first
                return place
            fault = _receive(url, place) and _receive(url, place)
    except (OSError, HTTPException, LockException, ValueError) as error:
        # The commonest says nothing but its reason, in brackets.
        fault = str(error.reason if type(error) is URLError else error) or type(error).__name__
    if fault:
        source = weights if url == weights else f"{weights} ({url})"
        what = f"put the file at {place}"
        if os.path.exists(place):
            what = f"replace the file at {place}, which cannot be used ({there})"
        raise CheckpointError(
            f"MODEL.WEIGHTS: {source} cannot be fetched: {fault}; {what}, or set MODEL.WEIGHTS to "
            "the path of a copy"
        )
    return place


def cache_place(url: str) -> str:
    """The path that the file of an address has, or would have, in the cache ($FVCORE_CACHE).

    That of Detectron2's own files is iopath's, so that all its projects share them. iopath leaves
    out the server and what follows "?": two servers' ``model_final.pth`` would be one file.

    Raises:
        ValueError: it is no address of a file.
    """
    parts = urlsplit(url)
    server = "" if url.startswith(_DETECTRON2) else parts.netloc
    path = posixpath.normpath(f"/{parts.path}").lstrip("/")
    if not path:
        raise ValueError("it has no name")
    return os.path.join(get_cache_dir(), server, quote(parts.query, safe=""), path)


def _receive(url: str, place: str) -> str | None:
    """Fetch a file and put it in its place if it is a checkpoint; returns what is wrong with it.

    iopath's own download waits without end, and draws a bar before there is anything to fetch.
    """
    folder, name = os.path.split(place)
    temporary = os.path.join(folder, f"part-{name}")
    try:
        with urlopen(url, timeout=_PATIENCE) as answer, open(temporary, "wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            bar = {"desc": name, "unit": "B", "unit_scale": True, "total": length or None}
            with tqdm.wrapattr(file, "write", **bar) as written:
                try:
                    shutil.copyfileobj(answer, written)
                except (ConnectionError, HTTPException, TimeoutError) as error:
                    return f"it was cut off ({error})"
        size = os.path.getsize(temporary)
        if length and size != length:
            return f"it was cut off: {size} of {length} bytes came"
        if fault := _fault(temporary):
            return fault.replace(temporary, "what came")
        os.replace(temporary, place)
        return None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _fault(path: str) -> str | None:
    """Why a file is no checkpoint that can be read; None if it is one."""
    if not os.path.isfile(path):
        return "there is none"
    with open(path, "rb") as file:
        if file.read(64).lstrip().startswith(b"<"):
            return "it is a web page, perhaps of a proxy"
    try:
        read_tensors(path)
    except CheckpointError as error:
        return str(error)
    return None
