"""The work that eval.py measures: random detections, and each way to evaluate them."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert

from smca.data.coco import CocoDataset, load_coco
from smca.evaluation import evaluate
from smca.evaluation.detections import tabulate
from smca.evaluation.evaluate import AP_NAMES, read_ground_truth
from smca.hosts import has_detectron2
from smca.structures import Detections

HEIGHT, WIDTH = 480, 640
OBJECTS = 7.4  # the mean number in an image
FOUND = 0.9  # the share of objects that have a good detection
Results = dict[str, float]


@dataclass(frozen=True)
class Case:
    """The sizes of a made-up evaluation.

    Attributes:
        images: number of images.
        boxes: number of detections in each image.
        classes: number of classes.
        folder: the folder of the annotation file.
    """

    images: int
    boxes: int
    classes: int
    folder: str


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return (count, 4) xywh boxes inside the image, with log-uniform sides."""
    sides = np.exp(rng.uniform(np.log(8), np.log(0.9 * HEIGHT), (count, 2)))
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, sides], axis=1)


def made_up(case: Case) -> tuple[CocoDataset, list[tuple[int, Detections]]]:
    """Return a random dataset and its detections; write the annotation file unless it exists.

    Both depend on ``case`` alone. The frequencies of the classes vary as in COCO: a fifth of all
    objects belongs to the most frequent one of 80 classes.
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
        # Half of the false detections take a class that occurs in the image.
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
    """Return a function that evaluates like pycocotools' own examples."""
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
    """Return a function that evaluates like the native host."""
    dataset, detections = made_up(case)

    def work() -> Results:
        rows = tabulate(detections)
        ground_truth = read_ground_truth(dataset.name, dataset.json_file)
        return evaluate.evaluate(dataset.name, rows, ground_truth, case.folder)["bbox"]

    return work


def detectron2(case: Case) -> Callable[[], Results]:
    """Return a function that evaluates like Detectron2's host."""
    from detectron2_evaluation import evaluation

    dataset, detections = made_up(case)
    return evaluation(detections, dataset, (HEIGHT, WIDTH), case.folder)


def evaluations() -> dict[str, Callable[[Case], Callable[[], Results]]]:
    """Return the functions above by name, without Detectron2's where it is not installed."""
    found = {"plain": plain, "native": native}
    return found | {"detectron2": detectron2} if has_detectron2() else found
