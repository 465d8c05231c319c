"""Peak memory of a task, measured in a process of its own."""

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

from ..imports import IMPORTED, import_all
from .host import Host


def peak_memory(prepare: Callable[..., Callable[[], object]], *args: object) -> int | None:
    """Measure how many bytes a task needs at its peak, beyond those that its preparation keeps.

    With CUDA these are the bytes of tensors on the device. Otherwise it is the growth of the
    process, which varies by a tenth or so with the allocator.

    Args:
        prepare: a function that can be imported by its name. A new process calls it, and it
            returns the task.
        args: arguments of ``prepare``.

    Returns:
        the bytes, or None if memory did not suffice.
    """
    # The new process may need the memory that this one has freed.
    torch.cuda.empty_cache()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once for all measurements
    with ProcessPoolExecutor(1, context, initializer=import_all, initargs=(IMPORTED,)) as pool:
        try:
            return pool.submit(_measure, prepare, args, torch.get_num_threads()).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return None


def prepare_pass(
    host: Host, cfg: CfgNode, size: tuple[int, int], batch: int, training: bool
) -> Callable[[], object]:
    """Prepare the pass of a model for :func:`peak_memory`.

    Args:
        host: the host that builds the model.
        cfg: config of the model, on MODEL.DEVICE. On a CPU MODEL.SMCA.ATTENTION_DROPOUT counts as
            0, because no attention kernel of a CPU is fused with it.
        size: (h, w) of the images in pixels.
        batch: number of images.
        training: forward and backward instead of an evaluation, without an optimizer.
    """
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
    infer(torch.rand(batch, 3, 64, 64, device=device))  # kernels load before memory is measured
    subject.model.train(training)
    return lambda: subject.loss(images).backward() if training else infer(images)


def _measure(prepare: Callable[..., Callable[[], object]], args: tuple, threads: int) -> int:
    torch.set_num_threads(threads)
    task = prepare(*args)
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    # Without permission to reset the peak, growth counts from the peak so far.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

    def peak() -> int:
        return sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else _process_peak()

    resting = peak()
    task()
    return peak() - resting


def _process_peak() -> int:
    """The bytes of the process at the peak since it was reset."""
    # On Linux a process inherits its parent's ru_maxrss, but not its VmHWM.
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
