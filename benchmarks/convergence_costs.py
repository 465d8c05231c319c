"""The costs of one training iteration of each system in a convergence race."""

import csv
from collections.abc import Mapping
from pathlib import Path

import torch
from convergence_report import BASELINE
from convergence_results import Costs
from fvcore.common.config import CfgNode
from measuring import interleave, ratio
from origin import describe
from torch.utils.flop_counter import FlopCounterMode
from workload import Setting, Workload


def measure_costs(
    configs: Mapping[str, CfgNode], size: int, path: Path, *, rounds: int = 21
) -> None:
    """Measure what a training iteration of each system costs, and write it as CSV.

    What the file says of other systems stays there.

    Multiply-adds are those of matrix products, convolutions and attention in forward and backward
    pass, counted by torch as they run. Times are taken in turns, and compared within each turn.

    Args:
        configs: by system, with "detr" among them.
        size: side of the images in pixels.
        path: the CSV file.
    """
    torch.set_num_threads(1)
    works = {}
    for system, cfg in configs.items():
        device = cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu"
        setting = Setting((size, size), cfg.SOLVER.IMS_PER_BATCH, "fp32", device)
        works[system] = Workload(cfg, setting)
    counts = {}
    for system, work in works.items():
        with FlopCounterMode(display=False) as counter:
            work.train()
        counts[system] = counter.get_total_flops() / 2
    functions = {system: work.train for system, work in works.items()}
    times = interleave(functions, device=torch.device(device), rounds=rounds)
    origin = describe("", threads="one thread", device=device)
    rows = {row["system"]: row for row in _rows(path)}
    for system, count in counts.items():
        time = f"{ratio(times, system, BASELINE):.4f}"
        rows[system] = {"system": system, "multiply_adds": f"{count:.0f}", "time": time}
        rows[system] |= {key: origin[key] for key in ("commit", "machine", "software")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[BASELINE], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def read_costs(path: Path) -> dict[str, Costs]:
    """Return the costs by system, or none without that file."""
    return {
        row["system"]: Costs(float(row["multiply_adds"]), float(row["time"])) for row in _rows(path)
    }


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
