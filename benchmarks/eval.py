#!/usr/bin/env python3
"""Time COCO's evaluation of made-up detections: plainly written, and by each host that is there.

There are as many images, objects and classes as in COCO's validation set, and as many detections
an image as a detector gives: nine of ten objects have one that nearly fits, the others lie
anywhere. "plain" makes a dict of every detection, writes them by json.dump and gives them all to
pycocotools at once. Of each evaluation the stages are timed, and what is left is mostly that
detections become lists; memory is above a process that rests with the detections. Where the native
host shares out the classes to processes, that is without theirs: each needs at most what one
process for all needs. The error is the largest difference of any result in percent to the plain
one's.

Example:
    python benchmarks/eval.py --images 500 --rounds 2
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import torch
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
from torchvision.ops import box_convert

from smca.analysis.memory import peak_memory
from smca.data.coco import CocoDataset, load_coco
from smca.engine.guard import guarded
from smca.evaluation import evaluate, scoring
from smca.evaluation.detections import tabulate
from smca.evaluation.ground_truth import read_ground_truth
from smca.evaluation.scoring import AP_NAMES
from smca.structures import Detections

HEIGHT, WIDTH = 480, 640
OBJECTS = 7.4  # of an image, on average
FOUND = 0.9  # of them
Results = dict[str, float]


@dataclass(frozen=True)
class Case:
    """Images with so many detections each, and so many classes.

    Attributes:
        folder: holds the annotation file.
    """

    images: int
    boxes: int
    classes: int
    folder: str


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) xywh inside the image; the logarithms of the sides are uniform."""
    sides = np.exp(rng.uniform(np.log(8), np.log(0.9 * HEIGHT), (count, 2)))
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, sides], axis=1)


def made_up(case: Case) -> tuple[CocoDataset, list[tuple[int, Detections]]]:
    """Return the dataset, whose annotation file is written unless it exists, and the detections.

    Both are a function of ``case``. Classes are uneven, as COCO's are: of 80 the most frequent one
    has a fifth of all objects.
    """
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, case.classes + 1)
    frequency /= frequency.sum()
    annotations, detections = [], []
    for image_id in range(case.images):
        count = min(rng.geometric(1 / OBJECTS), case.boxes)
        boxes = random_boxes(rng, count)
        labels = rng.choice(case.classes, count, p=frequency)
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": image_id,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, (label, box) in enumerate(
                zip(labels.tolist(), boxes.tolist(), strict=True), start=1
            )
        ]
        found = rng.random(count) < FOUND
        near = boxes[found] * rng.normal(1, 0.05, (found.sum(), 4))
        others = case.boxes - len(near)
        # What is found anywhere is mostly of the classes that the image has.
        wrong = np.where(
            rng.random(others) < 0.5,
            rng.choice(labels, others),
            rng.choice(case.classes, others, p=frequency),
        )
        scores = np.concatenate([rng.beta(4, 3, len(near)), rng.beta(1, 12, others)])
        order = np.argsort(-scores)
        found_boxes = torch.from_numpy(np.concatenate([near, random_boxes(rng, others)])[order])
        found_labels = torch.from_numpy(np.concatenate([labels[found], wrong])[order])
        image = Detections(
            boxes=box_convert(found_boxes.float(), "xywh", "xyxy"),
            scores=torch.from_numpy(scores[order]).float(),
            labels=found_labels,
        )
        detections.append((image_id, image))
    file = Path(case.folder) / "ground_truth.json"
    if not file.exists():
        size = {"width": WIDTH, "height": HEIGHT, "file_name": file.name}
        content = {
            "images": [{"id": image_id, **size} for image_id in range(case.images)],
            "annotations": annotations,
            "categories": [{"id": i, "name": f"class {i}"} for i in range(case.classes)],
        }
        file.write_text(json.dumps(content))
    return load_coco("made_up", str(file), case.folder), detections


def plain(case: Case) -> Callable[[], Results]:
    """Return a function that evaluates as pycocotools' own examples do."""
    dataset, detections = made_up(case)

    def work() -> Results:
        results = [
            {
                "image_id": image_id,
                "category_id": dataset.category_ids[label],
                "bbox": box,
                "score": score,
            }
            for image_id, found in detections
            for box, score, label in zip(
                box_convert(found.boxes, "xyxy", "xywh").tolist(),
                found.scores.tolist(),
                found.labels.tolist(),
                strict=True,
            )
        ]
        with open(Path(case.folder) / "plain.json", "w") as file:
            json.dump(results, file)
        with contextlib.redirect_stdout(io.StringIO()):
            ground_truth = COCO(dataset.json_file)
            scores = COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
            scores.evaluate()
            scores.accumulate()
            scores.summarize()
        percent = (100 * scores.stats[:6]).tolist()
        return {name: x if x >= 0 else np.nan for name, x in zip(AP_NAMES, percent, strict=True)}

    return work


def native(case: Case) -> Callable[[], Results]:
    """Return a function that evaluates as the native host does."""
    dataset, detections = made_up(case)

    def work() -> Results:
        rows = tabulate(detections)
        ground_truth = read_ground_truth(dataset.name, dataset.json_file)
        return evaluate.evaluate(dataset.name, rows, ground_truth, case.folder)["bbox"]

    return work


def alone(case: Case) -> Callable[[], Results]:
    """Return the same function for one process."""
    return mock.patch.object(scoring, "_MAX_PROCESSES", 1)(native(case))


def detectron2(case: Case) -> Callable[[], Results]:
    """Return a function that evaluates as Detectron2's host does."""
    from smca.d2 import analysis

    dataset, detections = made_up(case)
    return analysis.evaluation(detections, dataset, (HEIGHT, WIDTH), case.folder)


def evaluations() -> dict[str, Callable[[Case], Callable[[], Results]]]:
    """Return the functions above by name, without Detectron2's where it is not installed."""
    found = {"plain": plain, "native": native, "native, 1 process": alone}
    return found | {"detectron2": detectron2} if find_spec("detectron2") else found


@contextlib.contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Give the seconds in each stage, without those of a stage inside another one."""
    calls = {
        "read": [(json, "load"), (COCO, "createIndex")],
        "write": [(json, "dump"), (json, "dumps"), (torch, "save")],
        "score": [
            (COCO, "loadRes"),
            (evaluate, "average_precision"),
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
    """A row for each evaluation, and one for each of its stages."""
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
            # The first was for warming up.
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
    """Seconds of each round in a stage, in "all" of them, or in none of them ("other")."""
    if stage == "all":
        return wholes
    if stage == "other":
        return [all_ - sum(each.values()) for all_, each in zip(wholes, spent, strict=True)]
    return [each[stage] for each in spent]


def _error(found: Results, wanted: Results) -> float:
    """Largest difference of any result; nan where only one of them is."""
    a, b = (np.array([results[name] for name in wanted]) for results in (found, wanted))
    return float(np.where(np.isnan(a) & np.isnan(b), 0, abs(a - b)).max())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=300, help="detections an image")
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
