"""The quickstart's model, trained and evaluated with and without mixed precision."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time

from measuring import ROOT, Row

from smca.data.shapes import QUICKSTART, write_shapes_dataset

from .check import Check

MODES = {
    "float32": ("SOLVER.AMP.ENABLED", "False"),
    "bfloat16": ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16"),
    "float16": ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "float16"),
}


def run(check: Check) -> None:
    sizes = check.pick(QUICKSTART, {"num_train": 16, "num_val": 4})
    # Reused by the next check.
    shapes = write_shapes_dataset(check.record.path.parent / "shapes", **sizes)
    for mode in check.pick(tuple(MODES), ("bfloat16",)):
        work = functools.partial(train, check, mode, MODES[mode], shapes)
        check.attempt("quickstart", work, precision=mode)


def train(check: Check, mode: str, changes: tuple[str, ...], shapes: dict) -> Row:
    """AP and time of one run of the training program."""
    folder = check.record.path.parent / f"learn_{mode}"
    datasets = [[f"shapes_{split}", *files] for split, files in shapes.items()]
    options = [
        *("MODEL.DEVICE", str(check.device), "OUTPUT_DIR", str(folder), "SEED", "0"),
        *("DATASETS.COCO_FORMAT", str(datasets), "TEST.EVAL_PERIOD", "0"),
        *("DATALOADER.NUM_WORKERS", str(check.pick(4, 0)), *changes),
    ]
    if check.tiny:
        options += ["SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"]
    begun = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, str(ROOT / "train_net.py"), "--engine", "native"),
            *("--config-file", "configs/quickstart.yaml", *options),
        ],
        cwd=ROOT,
        check=True,
    )
    seconds = time.monotonic() - begun
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    found = {key: value for line in lines for key, value in line.items()}
    steps = [line["time"] for line in lines if "time" in line]
    return {
        "AP": found["bbox/AP"],
        "loss": found["total_loss"],
        "iterations": found["iteration"] + 1,
        "seconds": seconds,
        "seconds a step": sorted(steps)[len(steps) // 2],
    }
