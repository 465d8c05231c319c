"""CUDA tensors without a GPU: where would the host wait for a copy to the device?"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import smca

PACKAGE = Path(smca.__file__).parent
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


def place() -> str:
    """The innermost line of the package that is running."""
    lines = [
        f"{Path(frame.filename).name}: {frame.line}"
        for frame in traceback.extract_stack()
        if PACKAGE in Path(frame.filename).parents
    ]
    return lines[-1] if lines else "outside the package"


class _Copies(TorchDispatchMode):
    """Notes in ``found`` where tensors are copied from the host and the host waits for it."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            asked = dict(zip(("self", "src", "non_blocking"), args, strict=False)) | (kwargs or {})
            waits = _on_host(source) and not _on_host(result) and not asked.get("non_blocking")
        else:
            # Their kernels copy an index that is on the host.
            waits = name in INDEXING and not _on_host(args[0]) and any(map(_on_host, args[1]))
        if waits:
            self.found.append(place())
        return result


def _on_host(value: Tensor | None) -> bool:
    return value is not None and value.device.type == "cpu"


@contextlib.contextmanager
def copies_that_wait() -> Iterator[list[str]]:
    """A list of the package's lines at which the host waits for a copy to a GPU.

    It is filled while the block runs, in which all tensors are fake: they have a shape and a
    device, "cuda" too, but no numbers, so nothing that reads numbers can run, such as the matcher's
    assignment. What the block uses, modules for instance, must be made in it. Without a GPU
    ``torch.autocast("cuda")`` and ``pin_memory`` work there; a backward pass does not.
    """
    found: list[str] = []
    autocast = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    pinning = mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor)
    with autocast, pinning, FakeTensorMode(), _Copies(found):
        yield found
