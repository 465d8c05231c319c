"""Weights that are named by an address: fetched once, into the cache that Detectron2 uses too."""

import os
import posixpath
import shutil
from http.client import HTTPException
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from iopath.common.file_io import PathManager, file_lock, get_cache_dir
from portalocker import LockException
from tqdm import tqdm

from ..errors import CheckpointError
from .files import read_tensors, require_file

_PREFIX, _DETECTRON2 = "detectron2://", "https://dl.fbaipublicfiles.com/detectron2/"
# Seconds that a server may be silent.
_PATIENCE = 60.0


def local_file(weights: str, path_manager: PathManager) -> str:
    """The path of a checkpoint, which :func:`fetch` or ``path_manager`` fetches by its address.

    Raises:
        CheckpointError: the file cannot be fetched.
    """
    path = fetch(weights)
    if "://" not in path:
        return path
    try:
        found = path_manager.get_local_path(path)
        require_file(found)
        return found
    except (OSError, AssertionError) as error:  # Path managers assert that they know an address.
        raise CheckpointError(
            f"MODEL.WEIGHTS: {path} cannot be fetched ({error}); fetch it by other means, and set "
            "MODEL.WEIGHTS to the path of the file"
        ) from error


def fetch(weights: str | os.PathLike) -> str:
    """The path of a checkpoint, which is fetched if it is named by an address.

    One process of a machine fetches, the others wait for it. A file in the cache is read before it
    is used: one that is cut off, or not a checkpoint, is fetched again.

    Args:
        weights: a path, or an address: ``detectron2://``, ``https://`` or ``http://``. Other kinds
            of addresses are returned as they are.

    Raises:
        CheckpointError: the file cannot be fetched; the message says where to put it.
    """
    weights = os.path.expanduser(os.fspath(weights))
    url = weights.replace(_PREFIX, _DETECTRON2, 1) if weights.startswith(_PREFIX) else weights
    if not url.lower().startswith(("https://", "http://")):
        return weights
    try:
        place = _cache_place(url)
    except ValueError as error:
        raise CheckpointError(
            f"MODEL.WEIGHTS: {weights} is not the address of a file: {error}"
        ) from error
    if (cached := _fault(place)) is None:
        return place
    try:
        with file_lock(place):
            if _fault(place) is None:  # another process was first
                return place
            fault = _receive(url, place) and _receive(url, place)
    except (OSError, HTTPException, LockException, ValueError) as error:
        # URLError itself says nothing but its reason, in brackets.
        fault = str(error.reason if type(error) is URLError else error) or type(error).__name__
    if fault:
        source = weights if url == weights else f"{weights} ({url})"
        there = f"replace the file at {place}, which cannot be used ({cached})"
        remedy = there if os.path.exists(place) else f"put the file at {place}"
        raise CheckpointError(
            f"MODEL.WEIGHTS: {source} cannot be fetched: {fault}; {remedy}, or set MODEL.WEIGHTS "
            "to the path of a copy"
        )
    return place


def _cache_place(url: str) -> str:
    """The path that an address's file has in the cache ($FVCORE_CACHE); ValueError if it has none.

    It is iopath's for Detectron2's own files, so that all its projects share them. For others
    iopath leaves out the server and the query: two servers' ``model_final.pth`` would be one file.
    """
    parts = urlsplit(url)
    server = "" if url.startswith(_DETECTRON2) else parts.netloc
    path = posixpath.normpath(f"/{parts.path}").lstrip("/")
    if not path:
        raise ValueError("it has no name")
    return os.path.join(get_cache_dir(), server, quote(parts.query, safe=""), path)


def _receive(url: str, place: str) -> str | None:
    """Fetch a file and put it in its place if it is a checkpoint; returns its fault otherwise.

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
            return fault.replace(temporary, "the answer")
        os.replace(temporary, place)
        return None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _fault(path: str) -> str | None:
    """Say why a checkpoint cannot be read; None if it can."""
    try:
        read_tensors(path)
    except (FileNotFoundError, CheckpointError) as error:
        return str(error)
    return None
