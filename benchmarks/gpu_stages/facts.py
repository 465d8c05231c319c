"""Describe the machine: device, driver, software, and the measured peaks of the device."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator

import torch
import torchvision
from measuring import Row
from roofline import PRECISIONS, measured_peaks, precision

from .check import Check


def run(check: Check) -> None:
    check.attempt("software", lambda: software())
    if check.cuda:
        check.attempt("device", lambda: device(check.device))
        check.attempt("set up", lambda: set_up(check.device))
    for name in PRECISIONS:
        check.attempt("peaks", lambda name=name: peaks(check.device, name), precision=name)


def software() -> Row:
    """Return the versions of the software, and the number of CPU cores."""
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "CPU cores": os.cpu_count(),
    }


def device(chosen: torch.device) -> Row:
    """Return the properties of a CUDA device."""
    found = torch.cuda.get_device_properties(chosen)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory GiB": found.total_memory / 2**30,
        "multiprocessors": found.multi_processor_count,
        "driver": _driver(),
        "devices": torch.cuda.device_count(),
    }


def _driver() -> str:
    """Return the driver's version as reported by nvidia-smi, or "unknown"."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    query = (program, "--query-gpu=driver_version", "--format=csv,noheader")
    found = subprocess.run(query, capture_output=True, text=True, timeout=20)
    return found.stdout.split("\n")[0].strip() or "unknown"


def set_up(chosen: torch.device) -> Iterator[Row]:
    """Check that this build of torch supports the device, and list the fast paths it enables."""
    major, minor = torch.cuda.get_device_capability(chosen)
    built = torch.cuda.get_arch_list()
    yield {"what": "torch is built for", "found": " ".join(built)}
    (torch.ones(8, device=chosen) + 1).sum().item()
    yield {"what": "a kernel runs", "found": f"on sm_{major}{minor}", "passed": True}
    half = torch.cuda.is_bf16_supported(including_emulation=False)
    yield {"what": "bfloat16", "found": "yes" if half else "no: float16 is used"}
    for name in ("flash", "mem_efficient", "cudnn"):
        enabled = getattr(torch.backends.cuda, f"{name}_sdp_enabled")()
        yield {"what": f"{name} attention", "found": "enabled" if enabled else "disabled"}


def peaks(chosen: torch.device, name: str) -> Row:
    """Return the rates of large matrix products and copies in a precision."""
    with precision(name) as dtype:
        found = measured_peaks(chosen, dtype)
    return {"tflops": found.flops / 1e12, "copy GB/s": found.bytes / 1e9}
