"""Train and evaluate the quickstart's model with and without mixed precision."""

import json
import shutil
import statistics
import subprocess
import sys

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
    # The next check in the same folder reuses these images.
    name = check.pick("shapes", "shapes_tiny")
    shapes = write_shapes_dataset(check.record.path.parent / name, **sizes)
    # Run all modes at once, since none of them keeps a GPU busy.
    runs = {
        mode: Training(check, mode, shapes)
        for mode in check.pick(tuple(MODES), ("float32", "bfloat16"))
    }
    for mode, training in runs.items():
        check.attempt("quickstart", training.result, precision=mode)


class Training:
    """A run of the training program that starts with the construction of this object."""

    def __init__(self, check: Check, mode: str, shapes: dict):
        self.folder = check.record.path.parent / f"learn_{mode}"
        shutil.rmtree(self.folder, ignore_errors=True)  # from an earlier check
        datasets = [[f"shapes_{split}", *files] for split, files in shapes.items()]
        options = [
            *("MODEL.DEVICE", str(check.device), "OUTPUT_DIR", str(self.folder), "SEED", "0"),
            *("DATASETS.COCO_FORMAT", str(datasets), "TEST.EVAL_PERIOD", "0"),
            *("DATALOADER.NUM_WORKERS", str(check.pick(4, 0)), *MODES[mode]),
        ]
        if check.tiny:
            options += ["SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"]
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "train_net.py"), "--engine", "native"),
                *("--config-file", "configs/quickstart.yaml", *options),
            ],
            cwd=ROOT,
        )

    def result(self) -> Row:
        """Wait for the run's end, and return its AP and time."""
        if code := self.process.wait():
            raise RuntimeError(f"train_net.py ended with code {code}")
        metrics = (self.folder / "metrics.json").read_text().splitlines()
        lines = [json.loads(line) for line in metrics]
        found = {key: value for line in lines for key, value in line.items()}
        return {
            "AP": found["bbox/AP"],
            "loss": found["total_loss"],
            "iterations": found["iteration"] + 1,
            "seconds a step": statistics.median(line["time"] for line in lines if "time" in line),
        }
