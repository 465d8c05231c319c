"""Run the medium race of benchmarks/convergence.py within the given time."""

import subprocess
import sys
import time
from collections.abc import Iterator

from convergence import SYSTEMS, TITLES
from convergence_report import read_race
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
        *("--size", check.pick("medium", "small"), "--output", str(folder)),
        *(
            "--data",
            str(folder.with_name("race_data")),
            "--images",
            *images,
        ),
    ]
    opts = ["MODEL.DEVICE", str(check.device)]
    if check.tiny:
        command += ["--iterations", "2", "--eval-period", "1", "--systems", "smca-independent"]
        opts += ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    process = subprocess.Popen([*command, "--opts", *opts], cwd=ROOT)
    try:
        code = process.wait(max(1.0, check.until - time.monotonic()))
    except subprocess.TimeoutExpired:
        # The race and its training run save on SIGTERM.
        process.terminate()
        code = process.wait()
    runs = read_race(folder, list(SYSTEMS), iterations=sys.maxsize)
    if not runs:
        raise RuntimeError(f"no evaluation was reached (convergence.py ended with code {code})")
    for each in runs:
        for iteration, values in sorted(each.evaluations.items()):
            system = {"system": TITLES[each.system], "seed": each.seed, "iteration": iteration}
            yield system | {"AP": values["AP"]}
