#!/usr/bin/env python3
"""Time matcher and losses of all decoder layers beside the same computation in plain loops.

Each case is a batch of random predictions and objects; both forms run forward and backward. The
parts are also timed separately: the whole matcher and, within it, the costs on the device, their
transfer to the host and scipy's assignment; and the losses of given pairs. The share relates to a
training step with the same number of images. An image of that step takes --step-seconds, or the
time of a step with one image of --step-config's model on this machine. A GPU needs less time for an
image in a larger batch, so give --step-seconds there. Errors are the largest differences from the
plain losses and gradients, relative to the largest of those.

Example:
    python benchmarks/criterion.py --losses focal --batches 1 16 --boxes 10 100
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import plain_criterion
import torch
from measuring import (
    ROOT,
    PerformanceTarget,
    Row,
    add_arguments,
    chosen_device,
    interleave,
    quotient,
    ratio,
    summary,
    write,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from smca.analysis.host import NATIVE
from smca.analysis.memory import peak_memory
from smca.engine.guard import guarded
from smca.engine.step import TrainingStep
from smca.structures import Predictions
from smca.training import HungarianMatcher, SetCriterion, Targets
from smca.training.solver import build_optimizer

LOSSES = ("focal", "softmax")
CLASS_WEIGHT = {"focal": 2.0, "softmax": 1.0}
# The largest share of a training step on a CPU, and the most waits for a GPU in a step.
TARGET_SHARE, TARGET_WAITS = 0.03, 1


@dataclass(frozen=True)
class Case:
    """The sizes of a batch and of a detector's predictions.

    Attributes:
        loss: "focal" or "softmax".
        batch: number of images.
        boxes: number of objects in each image.
        layers, queries, classes: sizes of the predictions.
    """

    loss: str
    batch: int
    boxes: int
    layers: int
    queries: int
    classes: int


class Work:
    """Random predictions and objects of a case, and the functions to time on them."""

    def __init__(self, case: Case, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        self.softmax = case.loss == "softmax"
        shape = case.layers, case.batch, case.queries
        logits = torch.randn(*shape, case.classes + self.softmax, generator=generator) - 3
        self.predictions = Predictions(
            logits=logits.to(device).requires_grad_(),
            boxes=made_up_boxes(shape, generator).to(device).requires_grad_(),
            centers=torch.full((*shape[1:], 2), 0.5, device=device),
        )
        objects = case.batch, case.boxes
        self.targets = Targets(
            labels=torch.randint(case.classes, objects, generator=generator).to(device),
            boxes=made_up_boxes(objects, generator).to(device),
            counts=(case.boxes,) * case.batch,
        )
        self.weight = CLASS_WEIGHT[case.loss]
        self.matcher = HungarianMatcher(softmax=self.softmax, class_cost=self.weight)

    def losses(self, matcher: Callable | None = None) -> dict[str, Tensor]:
        """Return the losses of the project's criterion, with its own matcher or ``matcher``."""
        criterion = SetCriterion(
            matcher=matcher or self.matcher,
            classification="softmax" if self.softmax else "focal",
            class_weight=self.weight,
        )
        return criterion(self.predictions, self.targets)

    def plain_losses(self) -> dict[str, Tensor]:
        """Return the losses of the plain loops."""
        objects = self.targets.labels.unbind(), self.targets.boxes.unbind()
        return plain_criterion.losses(self.predictions, *objects, softmax=self.softmax)

    def gradients(self, losses: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the gradients of the losses' sum with respect to logits and boxes."""
        total = torch.stack(list(losses.values())).sum()
        return torch.autograd.grad(total, (self.predictions.logits, self.predictions.boxes))

    def wholes(self) -> dict[str, Callable[[], object]]:
        """Return matcher and losses, forward and backward: the project's and the plain form."""
        return {
            "criterion": lambda: self.gradients(self.losses()),
            "plain": lambda: self.gradients(self.plain_losses()),
        }

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return each part of the project's criterion, on the result of the part before."""
        both = self.predictions, self.targets
        matches = self.matcher(*both)
        costs = torch.no_grad()(self.matcher.costs)
        on_device = costs(*both)
        on_host = on_device.cpu().numpy()
        return {
            "matcher": lambda: self.matcher(*both),
            "costs": lambda: costs(*both),
            "transfer": on_device.cpu,
            "assignment": lambda: [
                linear_sum_assignment(one) for layer in on_host for one in layer
            ],
            "losses": lambda: self.losses(lambda *_: matches),
            "losses+backward": lambda: self.gradients(self.losses(lambda *_: matches)),
        }

    def errors(self) -> Row:
        """Return the largest relative differences from the plain losses and gradients."""
        ours, plain = self.losses(), self.plain_losses()
        gradients = zip(self.gradients(ours), self.gradients(plain), strict=True)
        return {
            "error": max(error(ours[name], plain[name]) for name in plain),
            "gradient_error": max(error(*pair) for pair in gradients),
        }


def made_up_boxes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return random boxes inside the image, (*shape, 4) cxcywh."""
    sides = 0.02 + 0.4 * torch.rand(*shape, 2, generator=generator) ** 2
    centers = sides / 2 + (1 - sides) * torch.rand(*shape, 2, generator=generator)
    return torch.cat([centers, sides], dim=-1)


@torch.no_grad()
def error(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest absolute value of ``wanted``."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def prepare(case: Case, device: str, name: str) -> Callable[[], object]:
    """Return a fresh process's work, after it has run at a small size."""
    small = Case(case.loss, 1, 1, 2, 4, case.classes)
    Work(small, torch.device(device)).wholes()[name]()
    return Work(case, torch.device(device)).wholes()[name]


def waits(work: Callable[[], object]) -> int:
    """Count how often ``work`` makes the host wait for the CUDA device, as torch reports it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(each.message) for each in caught)


def training_step(args: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """Return a step of --step-config's model with one image: forward, backward and update."""
    cfg = NATIVE.read(args.step_config, ["MODEL.SMCA.ATTENTION_DROPOUT", 0.0])
    subject = NATIVE.build(cfg, str(device))
    subject.model.train()
    image = torch.rand(1, 3, *args.step_size, device=device)
    step = TrainingStep(build_optimizer(cfg, subject.model), device=device, amp=None)
    return lambda: step(lambda: {"loss": subject.loss(image)}, [0])


def measure(case: Case, args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Return a row for each form of the criterion and for each part of the project's."""
    work = Work(case, device)
    wholes = work.wholes()
    functions = wholes | work.parts()
    times = interleave(
        functions, device=device, rounds=args.rounds, least_seconds=args.least_seconds
    )
    errors = work.errors()
    rows = []
    for name, seconds in times.items():
        peak = None
        # The case with the most objects needs the most memory.
        if args.memory and name in wholes and case.boxes == max(args.boxes):
            peak = peak_memory(prepare, case, str(device), name)
        row = {
            **asdict(case),
            "part": name,
            "seconds": summary(seconds),
            "over_criterion": ratio(times, name, "criterion"),
            "share_of_step": summary(seconds).median / (args.step_seconds * case.batch),
            "peak_mib": quotient(peak, 2**20),
            "waits": waits(functions[name]) if device.type == "cuda" else None,
        }
        rows.append(row | (errors if name == "criterion" else dict.fromkeys(errors)))
    return rows


def performance_targets(rows: list[Row], device: torch.device) -> list[PerformanceTarget]:
    """Compare the worst of all cases with the target of the device."""
    rows = [row for row in rows if row["part"] == "criterion"]
    if device.type == "cuda":
        most = max(row["waits"] for row in rows)
        return [PerformanceTarget("waits of the criterion for the device", most, TARGET_WAITS)]
    largest = max(row["share_of_step"] for row in rows)
    return [PerformanceTarget("criterion / training step", largest, TARGET_SHARE)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--boxes", nargs="+", type=int, default=[1, 10, 50, 100], help="objects in each image"
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="do not measure peak memory"
    )
    parser.add_argument(
        "--step-seconds", type=float, help="seconds of a training step for each image"
    )
    parser.add_argument(
        "--step-config",
        default=str(ROOT / "configs/smca_single_scale_R50_50ep.yaml"),
        help="measure a step of this config unless --step-seconds is given",
    )
    parser.add_argument(
        "--step-size",
        nargs=2,
        type=int,
        default=(800, 1066),
        metavar=("H", "W"),
        help="image size of that step",
    )
    add_arguments(parser, "criterion")
    return parser.parse_args()


def main() -> int:
    args = parse()
    device = chosen_device(args)
    if args.step_seconds is None:
        step = {"step": training_step(args, device)}
        times = interleave(step, device=device, rounds=3, warm_up=1)
        args.step_seconds = summary(times["step"]).median
        del step
    cases = [
        Case(loss, batch, boxes, args.layers, args.queries, args.classes)
        for loss in args.losses
        for batch in args.batches
        for boxes in args.boxes
    ]
    rows = []
    for case in cases:
        print(case, file=sys.stderr, flush=True)
        rows += measure(case, args, device)
        found = performance_targets(rows, device)
        write("criterion", rows, args.output, targets=found, show=case is cases[-1])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
