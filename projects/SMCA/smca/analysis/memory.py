"""Peak memory of an evaluation and of a training step, each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
import resource
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from .host import Host

# Loads what kernels need before memory is looked at.
_WARM_UP = (64, 64)


def peak_memory(
    host: Host, cfg: CfgNode, *, size: tuple[int, int], batch: int = 1, training: bool
) -> int | None:
    """Bytes that a forward pass needs beyond the resting model, at its peak.

    On CUDA it is what tensors take; on a CPU the growth of the process, which the allocator lets
    vary by a tenth or so.

    Args:
        host: builds the model.
        cfg: its config; MODEL.DEVICE says where. On a CPU MODEL.SMCA.ATTENTION_DROPOUT counts as
            0, because no attention kernel of a CPU is fused with it.
        size: (h, w) of the images in pixels.
        batch: images.
        training: with gradients and the backward pass, without an optimizer.

    Returns:
        None where memory did not suffice and the system ended the process.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        try:
            return pool.submit(_measure, host, cfg, size, batch, training).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return None


def _measure(host: Host, cfg: CfgNode, size: tuple[int, int], batch: int, training: bool) -> int:
    warnings.simplefilter("ignore")
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cpu":
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.SMCA.ATTENTION_DROPOUT = 0.0
    subject = host.build(cfg, str(device))
    images = torch.rand(batch, 3, *size, device=device)
    with torch.no_grad():
        subject.model.eval()
        subject.infer(torch.rand(batch, 3, *_WARM_UP, device=device))
    resting = _peak(device, reset=True)
    if training:
        subject.model.train()
        subject.loss(images).backward()
    else:
        with torch.no_grad():
            subject.infer(images)
    return _peak(device) - resting


def _peak(device: torch.device, *, reset: bool = False) -> int:
    """Bytes at the peak so far; with ``reset``, on CUDA, what is in use, and the peak from now."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    # On Linux a process inherits its parent's ru_maxrss, but not this.
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
