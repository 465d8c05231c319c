"""The results of a run as Markdown: `results.md` in OUTPUT_DIR, or a part of the log."""

import logging
import math
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from ..analysis.markdown import markdown_table
from ..distributed import world_size
from ..evaluation.evaluate import CLASS_PREFIX, METRICS

logger = logging.getLogger(__name__)

# An evaluation's results for each dataset: {"bbox": {"AP": ..., "AP-<class>": ..., ...}}.
Results = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass
class Clock:
    """The seconds that a run's iterations took, those before a resume among them."""

    seconds: float = 0.0
    iterations: int = 0


def write_results(
    folder: str, facts: Mapping[str, str], results: Results, best: Mapping[str, float | None]
) -> None:
    """Write `results.md` to a run's folder: its facts, and the tables of its last evaluation."""
    page = f"# {os.path.basename(os.path.abspath(folder))}\n\n"
    page += markdown_table(("trained", f"`{folder}`"), list(facts.items()), left=2)
    path = Path(folder, "results.md")
    path.write_text(page + "\n" + results_tables(results, best), encoding="utf-8")
    logger.info("results written to %s", path)


def results_tables(results: Results, best: Mapping[str, float | None] | None = None) -> str:
    """A heading and a table for each dataset, and one of its classes where they are known.

    Args:
        results: of an evaluation.
        best: ``best_metric`` and ``best_iter``, the best AP so far on the first dataset and its
            iteration, None before any; it stands beside the AP of that dataset.
    """
    parts: list[str] = []
    for name, result in results.items():
        scores = result["bbox"]
        table = {metric: percent(scores.get(metric, math.nan)) for metric in METRICS}
        if best and best.get("best_metric") is not None and not parts:
            iterations = int(best["best_iter"] or 0) + 1
            table["best AP"] = f"{percent(best['best_metric'])} after {iterations:,} iterations"
        parts.append(f"## {name}\n\n" + markdown_table(list(table), [list(table.values())], left=0))
        classes = [(key, value) for key, value in scores.items() if key.startswith(CLASS_PREFIX)]
        rows = [(key.removeprefix(CLASS_PREFIX), percent(value)) for key, value in classes]
        if rows:
            parts.append(markdown_table(("class", "AP"), rows))
    return "\n".join(parts)


def percent(value: float | None) -> str:
    """A score with one decimal, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def run_facts(cfg: CfgNode, model: nn.Module, *, num_images: int, clock: Clock) -> dict[str, str]:
    """Return facts of a run in words, such as its length, time and memory.

    Args:
        num_images: of the training set; 0 where it is not known.
    """
    solver = cfg.SOLVER
    device = next(model.parameters()).device
    facts = {"iterations": f"{solver.MAX_ITER:,} of {solver.IMS_PER_BATCH} images"}
    if num_images:
        epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / num_images
        facts["epochs"] = f"{epochs:.1f} of {num_images:,} images"
    facts["parameters"] = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
    if cfg.MODEL.EMA.ENABLED:
        facts["evaluated"] = f"moving average of the weights, decay {cfg.MODEL.EMA.DECAY}"
    if clock.iterations:
        part = f" for {clock.iterations:,} iterations" * (clock.iterations != solver.MAX_ITER)
        facts["training time"] = f"{timedelta(seconds=round(clock.seconds))}{part}"
        facts["seconds an iteration"] = f"{clock.seconds / clock.iterations:.3f}"
    facts["device"] = f"{world_size()} x " * (world_size() > 1) + _device_name(device)
    facts["peak memory"] = _peak_memory(device)
    return facts


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def _peak_memory(device: torch.device) -> str:
    """Return the peak memory of tensors on the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of the GPU"
    # In bytes on macOS, else in KiB.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.2f} GiB of the process"
