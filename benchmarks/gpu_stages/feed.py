"""Measure the images per second that loader processes deliver, and how many training needs."""

import argparse
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_workload import importable, load
from measuring import ROOT, Row
from photos import write_photos

from .check import Check

CONFIG = "configs/smca_R50_50ep.yaml"


def run(check: Check) -> None:
    check.attempt("loading", lambda: loading(check))


def loading(check: Check) -> Iterator[Row]:
    """Yield the rate of loading JPEG files of COCO's size for each number of processes.

    Further rows give the number of processes that each measured training needs.
    """
    native, *_ = importable()
    cores = os.cpu_count() or 1
    counts = check.pick([1, *(n for n in (4, 8, 16) if n <= cores)], [1])
    args = argparse.Namespace(
        config_file=str(ROOT / CONFIG),
        device=str(check.device),
        batch=4,
        batches=check.pick(16, 2),
        step_seconds=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        size = check.pick((480, 640), (60, 80))
        count = check.pick(32, 8)
        records = write_photos(Path(folder), count, size=size, kind="jpg").records
        rates = {}
        for workers in counts:
            seconds, _ = load(native, records, workers, args)
            rates[workers] = 1 / seconds
            yield {"processes": workers, "images/s": rates[workers], "CPU cores": cores}
    # Divide by the rate of one process, which has a core to itself.
    for stage in check.record.runs()[-1]["stages"]:
        for row in stage["rows"]:
            if row["table"] == "training" and row.get("attention") == "fused":
                needed = math.ceil(row["images/s"] / rates[counts[0]])
                case = f"{row['model']}, batch {row['batch']}, {row['precision']}"
                yield {"for": case, "images/s": row["images/s"], "processes needed": needed}
