"""Run the medium race of benchmarks/convergence.py within the given time."""

import subprocess
import sys
import time
from collections.abc import Iterator

from convergence_races import TITLES
from convergence_results import read_run
from measuring import ROOT, Row

from .check import Check


def run(check: Check) -> None:
    check.attempt("race", lambda: race(check))


def race(check: Check) -> Iterator[Row]:
    """Run or continue the race, and yield the evaluations of all runs so far."""
    folder = check.record.path.parent / "race"
    # The race's own numbers of images would take ten minutes to draw.
    images = check.pick(("1500", "200"), ("8", "4"))
    command = [
        *(sys.executable, str(ROOT / "benchmarks/convergence.py")),
        *(check.pick("medium", "scenes"), "--output", str(folder), "--images", *images),
        *("--data", str(folder.with_name("race_data"))),
    ]
    if check.tiny:
        command += ["--iterations", "2", "--eval-period", "1", "--systems", "smca-independent"]
        command += ["--seeds", "0"]
    opts = ["MODEL.DEVICE", str(check.device)]
    if check.tiny:
        opts += ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    process = subprocess.Popen([*command, "--opts", *opts], cwd=ROOT)
    try:
        code = process.wait(max(1.0, check.until - time.monotonic()))
    except subprocess.TimeoutExpired:
        # The race and its training run save on SIGTERM.
        process.terminate()
        code = process.wait()
    runs = [read_run(folder / system / "seed0", system, 0, sys.maxsize) for system in TITLES]
    runs = [run for run in runs if run.evaluations]
    if not runs:
        raise RuntimeError(f"no evaluation was reached (convergence.py ended with code {code})")
    for each in runs:
        for iteration, values in sorted(each.evaluations.items()):
            system = {"system": TITLES[each.system], "seed": each.seed, "iteration": iteration}
            yield system | {"AP": values["AP"]}
