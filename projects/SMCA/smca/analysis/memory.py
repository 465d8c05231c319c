"""Peak memory of a piece of work, measured in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import resource
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from .host import Host

# Loads what kernels need before memory is looked at.
_WARM_UP = (64, 64)


def peak_memory(prepare: Callable[..., Callable[[], object]], *args: object) -> int | None:
    """Bytes that a piece of work needs at its peak, beyond what its process rests with.

    Where CUDA is used it is what tensors take there; else the growth of the process, which the
    allocator lets vary by a tenth or so.

    Args:
        prepare: a function that can be found by name. A fresh process calls it; it returns the
            work. Whatever it has made by then is at rest.
        args: for ``prepare``.

    Returns:
        None where memory did not suffice and the system ended the process.
    """
    # What this process has freed may be what that one needs.
    torch.cuda.empty_cache()
    spawn = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        try:
            return pool.submit(_measure, prepare, args, threads).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return None


def peak_memory_of_pass(
    host: Host, cfg: CfgNode, *, size: tuple[int, int], batch: int = 1, training: bool
) -> int | None:
    """Bytes that a forward pass needs beyond the resting model; see :func:`peak_memory`.

    Args:
        host: builds the model.
        cfg: its config; MODEL.DEVICE says where. On a CPU MODEL.SMCA.ATTENTION_DROPOUT counts as
            0, because no attention kernel of a CPU is fused with it.
        size: (h, w) of the images in pixels.
        batch: images.
        training: with gradients and the backward pass, without an optimizer.
    """
    return peak_memory(_prepare_pass, host, cfg, size, batch, training)


def _prepare_pass(
    host: Host, cfg: CfgNode, size: tuple[int, int], batch: int, training: bool
) -> Callable[[], object]:
    warnings.simplefilter("ignore")
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cpu":
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.SMCA.ATTENTION_DROPOUT = 0.0
    subject = host.build(cfg, str(device))
    images = torch.rand(batch, 3, *size, device=device)
    infer = torch.no_grad()(subject.infer)
    subject.model.eval()
    infer(torch.rand(batch, 3, *_WARM_UP, device=device))
    subject.model.train(training)
    return lambda: subject.loss(images).backward() if training else infer(images)


def _measure(prepare: Callable[..., Callable[[], object]], args: tuple, threads: int) -> int:
    torch.set_num_threads(threads)
    work = prepare(*args)
    peak = _cuda_peak if torch.cuda.is_initialized() else _process_peak
    resting = peak(reset=True)
    work()
    return peak() - resting


def _cuda_peak(*, reset: bool = False) -> int:
    """Bytes at the peak so far; with ``reset`` what is in use, where the peak starts from now."""
    devices = range(torch.cuda.device_count())
    if reset:
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
    return sum(map(torch.cuda.max_memory_allocated, devices))


def _process_peak(*, reset: bool = False) -> int:
    """The same of the process."""
    process = Path("/proc/self")
    if reset:
        # Where this may not be done, growth counts from the peak so far.
        with contextlib.suppress(OSError):
            (process / "clear_refs").write_text("5")
    # On Linux a process inherits its parent's ru_maxrss, but not this.
    status = process / "status"
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
