"""Precisions that last for a while, and the arithmetic of what a device reaches."""

from pathlib import Path

import roofline
import torch

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_precision_is_chosen_for_a_while():
    before = torch.get_autocast_dtype("cpu")
    for name, dtype in {"fp32": torch.float32, "tf32": torch.float32}.items():
        with roofline.precision(name) as chosen:
            assert chosen == dtype
            assert torch.backends.cuda.matmul.allow_tf32 == (name == "tf32")
    with roofline.precision("fp16") as chosen, torch.autocast("cpu"):
        assert chosen == torch.float16
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float16
    assert torch.get_autocast_dtype("cpu") == before


def test_peaks_are_of_this_machine():
    peaks = roofline.measured_peaks(CPU, torch.float32)
    assert 1e8 < peaks.flops < 1e14 and 1e8 < peaks.bytes < 1e13
    half = roofline.Peaks(flops=2e12, bytes=4e9).reached(flops=1e12, moved=1e9, seconds=1.0)
    assert half == {"tflops": 1, "of_peak_flops": 0.5, "gb_per_s": 1, "of_peak_bandwidth": 0.25}
