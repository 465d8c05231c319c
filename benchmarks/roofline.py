"""Select the precision of a benchmark, and measure a device's peaks in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from measuring import Row, interleave

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", *HALF)


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Set the precision of matrix products and convolutions to one of ``PRECISIONS``.

    Yields:
        the numbers' dtype; for half precision, also autocast's dtype on a CPU and on CUDA.
    """
    dtype = HALF.get(name, torch.float32)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    cast = {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    for kind in cast:
        if name in HALF:
            torch.set_autocast_dtype(kind, dtype)
    try:
        yield dtype
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        for kind, previous in cast.items():
            torch.set_autocast_dtype(kind, previous)


@dataclass(frozen=True)
class Peaks:
    """The best measured rates of a device: floating-point operations and bytes per second."""

    flops: float
    bytes: float

    def reached(self, flops: float, moved: float, seconds: float) -> Row:
        """Return the columns of a work's rates, absolute and relative to the peaks.

        Args:
            flops: least number of floating-point operations that the work needs.
            moved: least number of bytes that the work reads and writes.
            seconds: measured time of the work.
        """
        return {
            "tflops": flops / seconds / 1e12,
            "of_peak_flops": flops / seconds / self.flops,
            "gb_per_s": moved / seconds / 1e9,
            "of_peak_bandwidth": moved / seconds / self.bytes,
        }


def measured_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Measure a device's peaks by a large matrix product and by a copy of 256 MiB (64 on a CPU).

    Args:
        device: the device to measure.
        dtype: dtype of the matrices; :func:`precision` selects tf32.
    """
    size = 8192 if device.type == "cuda" else 256  # a CPU may be very slow in float16
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    numbers = 1 << (26 if device.type == "cuda" else 24)
    source, copied = (torch.zeros(numbers, device=device) for _ in range(2))
    functions = {
        "product": lambda: torch.mm(a, b, out=out),
        "copy": lambda: copied.copy_(source),
    }
    times = interleave(functions, device=device, rounds=5, least_seconds=0.05)
    return Peaks(
        flops=2 * size**3 / min(times["product"]),
        bytes=2 * source.nbytes / min(times["copy"]),
    )
