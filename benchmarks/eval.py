#!/usr/bin/env python3
"""Time COCO's evaluation of random detections, in a plain form and by each installed host.

By default, the numbers of images, objects and classes match COCO's validation set, and each image
has as many detections as a detector returns. Nine of ten objects have a detection that nearly fits;
all other detections lie anywhere. "plain" makes a dict of every detection, writes all of them by
json.dump and passes them to pycocotools at once. The benchmark times the stages of each evaluation;
"other" is mostly the conversion of detections to lists. Peak memory excludes the detections. The
error is the largest difference of any result from the plain form's, in percent.

Example:
    python benchmarks/eval.py --images 500 --rounds 2
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial, wraps
from unittest import mock

import numpy as np
import torch
from eval_workload import Case, Results, evaluations
from measuring import (
    Row,
    add_arguments,
    chosen_device,
    interleave,
    quotient,
    ratio,
    summary,
    write,
)
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smca.analysis.memory import peak_memory
from smca.engine.guard import guarded
from smca.evaluation import evaluate


@contextlib.contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Yield the seconds spent in each stage; a stage inside another one is not counted again."""
    calls = {
        "read": [(json, "load"), (COCO, "createIndex")],
        "write": [(json, "dump"), (json, "dumps"), (torch, "save")],
        "score": [
            (COCO, "loadRes"),
            (evaluate, "score_classes"),
            (COCOeval, "evaluate"),
            (COCOeval, "accumulate"),
            (COCOeval, "summarize"),
        ],
    }
    spent = dict.fromkeys(calls, 0.0)
    inside = False

    def timed(stage: str, function: Callable) -> Callable:
        @wraps(function)
        def call(*args: object, **arguments: object) -> object:
            nonlocal inside
            if inside:
                return function(*args, **arguments)
            inside, begin = True, time.perf_counter()
            try:
                return function(*args, **arguments)
            finally:
                spent[stage] += time.perf_counter() - begin
                inside = False

        return call

    with contextlib.ExitStack() as stack:
        for stage, places in calls.items():
            for owner, name in places:
                wrapper = timed(stage, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, wrapper))
        yield spent


def measure(case: Case, args: argparse.Namespace) -> list[Row]:
    """Return a row for each evaluation, and one for each of its stages."""
    results: dict[str, Results] = {}
    spent: dict[str, list[dict[str, float]]] = defaultdict(list)

    def run(name: str, work: Callable[[], Results]) -> None:
        with stages() as seconds:
            results[name] = work()
        spent[name].append(seconds)

    prepares = evaluations()
    works = {name: partial(run, name, prepare(case)) for name, prepare in prepares.items()}
    wholes = interleave(works, device=torch.device("cpu"), rounds=args.rounds, warm_up=1)
    rows = []
    for name, prepare in prepares.items():
        for stage in ("all", *spent[name][0], "other"):
            # The first call was the warm-up.
            times = {each: _times(stage, wholes[each], spent[each][1:]) for each in wholes}
            peak = peak_memory(prepare, case) if args.memory and stage == "all" else None
            row = {
                "evaluation": name,
                "images": case.images,
                "boxes": case.boxes,
                "stage": stage,
                "seconds": summary(times[name]),
                "share": ratio({"stage": times[name], "all": wholes[name]}, "stage", "all"),
                "plain_over": ratio(times, "plain", name),
                "peak_mib": quotient(peak, 2**20),
                "AP": results[name]["AP"] if stage == "all" else None,
                "error": _error(results[name], results["plain"]) if stage == "all" else None,
            }
            rows.append(row)
    return rows


def _times(stage: str, wholes: list[float], spent: list[dict[str, float]]) -> list[float]:
    """Return each round's seconds in a stage, in "all" stages, or outside them ("other")."""
    if stage == "all":
        return wholes
    if stage == "other":
        return [all_ - sum(each.values()) for all_, each in zip(wholes, spent, strict=True)]
    return [each[stage] for each in spent]


def _error(found: Results, wanted: Results) -> float:
    """Return the largest difference of any result, or nan if only one of two results is nan."""
    a, b = (np.array([results[name] for name in wanted]) for results in (found, wanted))
    return float(np.where(np.isnan(a) & np.isnan(b), 0, abs(a - b)).max())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=300, help="detections in each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="do not measure peak memory"
    )
    add_arguments(parser, "eval", rounds=3)
    return parser.parse_args()


def main() -> int:
    args = parse()
    chosen_device(args)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Case(args.images, args.boxes, args.classes, folder), args)
    write("eval", rows, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
