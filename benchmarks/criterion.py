#!/usr/bin/env python3
"""Time matcher and losses of all decoder layers, beside the same written in plain loops.

Each case is a batch of made-up predictions and objects, on which both run forward and backward.
Parts are timed apart: the matcher, and of it the costs on the device, their way to the host and
scipy's assignment; the losses of pairs that are known. The share is of a training step of so many
images: --step-seconds an image, or what --step-config's model takes here for a step with one. On a
GPU, which is faster with more images, tell --step-seconds. Errors are the largest differences to
the plain losses and gradients, relative to the largest of these.

Example:
    python benchmarks/criterion.py --losses focal --batches 1 16 --boxes 10 100
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import plain_criterion
import torch
from measuring import (
    ROOT,
    Bar,
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
# Of a training step on a CPU; and how often a step may wait for a GPU.
BAR_SHARE, BAR_WAITS = 0.03, 1


@dataclass(frozen=True)
class Case:
    """A batch with so many objects in each image, and what a detector says of it."""

    loss: str
    batch: int
    boxes: int
    layers: int
    queries: int
    classes: int


class Work:
    """A case's predictions and objects, and what is done with them."""

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
        """Of the project's criterion, with its own matcher or another."""
        criterion = SetCriterion(
            matcher=matcher or self.matcher, softmax=self.softmax, class_weight=self.weight
        )
        return criterion(self.predictions, self.targets)

    def plain_losses(self) -> dict[str, Tensor]:
        objects = self.targets.labels.unbind(), self.targets.boxes.unbind()
        return plain_criterion.losses(self.predictions, *objects, softmax=self.softmax)

    def gradients(self, losses: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Of the losses' sum, by logits and boxes."""
        total = torch.stack(list(losses.values())).sum()
        return torch.autograd.grad(total, (self.predictions.logits, self.predictions.boxes))

    def wholes(self) -> dict[str, Callable[[], object]]:
        """Matcher and losses, forward and backward: the project's and the plain ones."""
        return {
            "criterion": lambda: self.gradients(self.losses()),
            "plain": lambda: self.gradients(self.plain_losses()),
        }

    def parts(self) -> dict[str, Callable[[], object]]:
        """What the project's criterion does, part by part, on what the part before gave."""
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
        ours, plain = self.losses(), self.plain_losses()
        gradients = zip(self.gradients(ours), self.gradients(plain), strict=True)
        return {
            "error": max(error(ours[name], plain[name]) for name in plain),
            "gradient_error": max(error(*pair) for pair in gradients),
        }


def made_up_boxes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(*shape, 4) cxcywh, inside the image."""
    sides = 0.02 + 0.4 * torch.rand(*shape, 2, generator=generator) ** 2
    centers = sides / 2 + (1 - sides) * torch.rand(*shape, 2, generator=generator)
    return torch.cat([centers, sides], dim=-1)


@torch.no_grad()
def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def prepare(case: Case, device: str, name: str) -> Callable[[], object]:
    """A fresh process's work, which has run at a small size."""
    small = Case(case.loss, 1, 1, 2, 4, case.classes)
    Work(small, torch.device(device)).wholes()[name]()
    return Work(case, torch.device(device)).wholes()[name]


def waits(work: Callable[[], object]) -> int:
    """How often ``work`` has the host wait for the CUDA device, as far as torch can tell."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(each.message) for each in caught)


def training_step(args: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """A step of --step-config's model with one image: forward, backward and update."""
    cfg = NATIVE.read(args.step_config, ["MODEL.SMCA.ATTENTION_DROPOUT", 0.0])
    subject = NATIVE.build(cfg, str(device))
    subject.model.train()
    image = torch.rand(1, 3, *args.step_size, device=device)
    step = TrainingStep(build_optimizer(cfg, subject.model), device=device, amp=None)
    return lambda: step(lambda: {"loss": subject.loss(image)}, [0])


def measure(case: Case, args: argparse.Namespace, device: torch.device) -> list[Row]:
    """A row for each of both wholes and of the parts."""
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
        # Most objects need most memory.
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


def bars(rows: list[Row], device: torch.device) -> list[Bar]:
    """The worst of all cases."""
    rows = [row for row in rows if row["part"] == "criterion"]
    if device.type == "cuda":
        most = max(row["waits"] for row in rows)
        return [Bar("waits of the criterion for the device", most, BAR_WAITS)]
    return [Bar("criterion / training step", max(row["share_of_step"] for row in rows), BAR_SHARE)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--boxes", nargs="+", type=int, default=[1, 10, 50, 100], help="an image")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="do not measure peak memory"
    )
    parser.add_argument("--step-seconds", type=float, help="of a training step, an image")
    parser.add_argument(
        "--step-config",
        default=str(ROOT / "configs/smca_single_scale_R50_50ep.yaml"),
        help="whose step is measured, without --step-seconds",
    )
    parser.add_argument(
        "--step-size", nargs=2, type=int, default=(800, 1066), metavar=("H", "W"), help="its image"
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
        found = bars(rows, device)
        write("criterion", rows, args.output, bars=found, show=case is cases[-1])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
