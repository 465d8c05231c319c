#!/usr/bin/env python3
"""Measure each optimisation: training steps and inference with and without it, interleaved.

The project's defaults include the optimisations that are "taken"; the benchmark removes those for
the comparison and adds the others. A ratio below 1 says that the optimisation pays. Peak memory is
measured in a separate process for each variant and excludes the idle model. Attention dropout is
set as in model.py. KEY VALUE pairs after --opts change the config.

Examples:
    python benchmarks/ablation.py --config smca_single_scale_R50_50ep
    python benchmarks/ablation.py --config smca_R50_50ep --ablations "all blocks recomputed"
"""

import argparse
import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from unittest import mock

import torch
from fvcore.common.config import CfgNode
from measuring import Row, add_arguments, chosen_device, interleave, quotient, ratio, summary, write
from model import add_setting, read
from torch import Tensor, nn
from workload import Setting, Workload

from smca.analysis.memory import peak_memory
from smca.engine.guard import guarded
from smca.modeling import attention, heads, neck, norms, resnet_blocks
from smca.modeling.parts import Decoder
from smca.training import SetCriterion, solver

METHODS = {"inference": "infer", "training": "train"}


@dataclass(frozen=True)
class Ablation:
    """An optimisation that the benchmark removes from the project's defaults or adds to them.

    Attributes:
        taken: whether the defaults include it, so that ``opts`` and ``patch`` remove it.
        works: the kinds of work that it changes.
        opts: KEY VALUE pairs that change the config.
        patch: returns a context in which the detector is built and runs.
    """

    taken: bool
    works: tuple[str, ...] = tuple(METHODS)
    opts: tuple = ()
    patch: Callable[[], AbstractContextManager] = contextlib.nullcontext


def norm_apart() -> AbstractContextManager:
    """Normalise after each convolution instead of folding frozen batch norm into its weights."""

    def forward(self: resnet_blocks.ConvNorm, x: Tensor, valid: Tensor | None) -> Tensor:
        x = nn.Conv2d.forward(self, x)
        return self.norm(x, valid) if isinstance(self.norm, norms.GroupNorm) else self.norm(x)

    return mock.patch.object(resnet_blocks.ConvNorm, "forward", forward)


def always_masked() -> AbstractContextManager:
    """Build a mask of valid cells even if no image of the batch is padded."""

    valid_mask = neck.valid_mask

    def mask(sizes, stride, shape, device) -> Tensor:
        found = valid_mask(sizes, stride, shape, device)
        if found is not None:
            return found
        return torch.ones(len(sizes), 1, *shape, dtype=torch.bool, device=device)

    return mock.patch.object(neck, "valid_mask", mask)


def heads_one_by_one() -> AbstractContextManager:
    """Apply the heads to one decoder layer after the other."""

    def apply(module: nn.Module, hidden: Tensor) -> Tensor:
        return torch.stack([module(output) for output in hidden])

    return mock.patch.object(heads, "_apply", apply)


def losses_one_by_one() -> AbstractContextManager:
    """Call matcher and criterion once for each decoder layer."""

    criterion = SetCriterion.__call__

    def losses(self: SetCriterion, predictions: heads.Predictions, targets) -> dict[str, Tensor]:
        found = {}
        for layer in range(len(predictions.logits)):
            only = slice(layer, layer + 1)
            one = replace(
                predictions, logits=predictions.logits[only], boxes=predictions.boxes[only]
            )
            found |= {f"{name}_{layer}": x for name, x in criterion(self, one, targets).items()}
        return found

    return mock.patch.object(SetCriterion, "__call__", losses)


def positions_kept() -> AbstractContextManager:
    """Cache the sine positions by map size."""

    sine_positions = neck.sine_positions

    @functools.cache
    def kept(cells: tuple, *args: object, **options: object) -> Tensor:
        return sine_positions(cells, *args, **options)

    def positions(cells: list, *args: object, **options: object) -> Tensor:
        return kept(tuple(cells), *args, **options)

    return mock.patch.object(neck, "sine_positions", positions)


def all_layers() -> AbstractContextManager:
    """Predict from every decoder layer in inference, as in training."""

    def train(self: Decoder, mode: bool = True) -> Decoder:
        nn.Module.train(self, mode)
        self.training = True
        return self

    return mock.patch.object(Decoder, "train", train)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have the GNU C library keep freed memory and take large blocks from its own heap."""
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        # The library itself arrives at these values when a program frees large blocks.
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, 2**25)
        libc.mallopt(trim_threshold, 2**26)
        libc.malloc_trim(0)


def inference(function: Callable) -> Callable[[], AbstractContextManager]:
    """Return a patch that replaces :meth:`Workload.infer` by ``function``."""
    return lambda: mock.patch.object(Workload, "infer", function)


ABLATIONS = {
    "frozen batch norm inside convolutions": Ablation(taken=True, patch=norm_apart),
    "backbone with channels last": Ablation(
        taken=True,
        patch=lambda: mock.patch.object(torch, "channels_last", torch.contiguous_format),
    ),
    "no mask where nothing is padded": Ablation(taken=True, patch=always_masked),
    "heads of all layers at once": Ablation(
        taken=True, works=("training",), patch=heads_one_by_one
    ),
    "losses of all layers at once": Ablation(
        taken=True, works=("training",), patch=losses_one_by_one
    ),
    "fused optimizer": Ablation(
        taken=True, works=("training",), patch=lambda: mock.patch.object(solver, "_FUSED", ())
    ),
    "channels filled up for the kernel": Ablation(
        taken=True, patch=lambda: mock.patch.object(attention, "_CHANNEL_MULTIPLE", 1)
    ),
    "no attention dropout": Ablation(
        taken=True, works=("training",), opts=("MODEL.SMCA.ATTENTION_DROPOUT", 0.1)
    ),
    "inference without autograd": Ablation(
        taken=True, works=("inference",), patch=inference(Workload.infer.__wrapped__)
    ),
    "heads of the last layer alone": Ablation(taken=True, works=("inference",), patch=all_layers),
    "torch.inference_mode": Ablation(
        taken=False, works=("inference",), patch=inference(torch.inference_mode()(Workload.infer))
    ),
    "positions kept by size": Ablation(taken=False, patch=positions_kept),
    "foreach clipping": Ablation(
        taken=False,
        works=("training",),
        patch=lambda: mock.patch.object(
            nn.utils,
            "clip_grad_norm_",
            functools.partial(nn.utils.clip_grad_norm_, foreach=True),
        ),
    ),
    "no dropout": Ablation(taken=False, works=("training",), opts=("MODEL.SMCA.DROPOUT", 0.0)),
    "multi blocks recomputed": Ablation(
        taken=False, works=("training",), opts=("MODEL.SMCA.ENCODER.RECOMPUTE", "multi")
    ),
    "all blocks recomputed": Ablation(
        taken=False, works=("training",), opts=("MODEL.SMCA.ENCODER.RECOMPUTE", "all")
    ),
    "compiled": Ablation(taken=False, opts=("MODEL.SMCA.COMPILE", True)),
    "freed memory kept": Ablation(taken=False, patch=freed_memory_kept),
}
# The project's defaults, unchanged.
DEFAULT = Ablation(taken=True)


class Worker:
    """Runs one kind of work of a detector with one ablation."""

    def __init__(self, cfg: CfgNode, setting: Setting, ablation: Ablation, work: str):
        self.ablation, self.method = ablation, METHODS[work]
        cfg = cfg.clone()
        cfg.merge_from_list(list(ablation.opts))
        with ablation.patch():
            self.workload = Workload(cfg, setting)

    def __call__(self) -> object:
        with self.ablation.patch():
            return getattr(self.workload, self.method)()


def prepare(cfg: CfgNode, setting: Setting, name: str | None, work: str) -> Callable[[], object]:
    """Return a fresh process's work, after the same detector has done it once at a small size."""
    worker = Worker(cfg, setting, ABLATIONS.get(name, DEFAULT), work)
    worker.workload.see((64, 64), 1)
    worker()
    worker.workload.see(setting.size, setting.batch)
    return worker


def measure(cfg: CfgNode, setting: Setting, name: str, args: argparse.Namespace) -> list[Row]:
    """Return a row for each kind of work that an ablation changes."""
    ablation, rows = ABLATIONS[name], []
    ours, other = ("with", "without") if ablation.taken else ("without", "with")
    for work in ablation.works:
        functions = {
            ours: Worker(cfg, setting, DEFAULT, work),
            other: Worker(cfg, setting, ablation, work),
        }
        times = interleave(
            functions, device=torch.device(setting.device), rounds=args.rounds, warm_up=1
        )
        row = {
            "ablation": name,
            "taken": "yes" if ablation.taken else "no",
            "work": work,
            "seconds_with": summary(times["with"]),
            "seconds_without": summary(times["without"]),
            "time_with_over_without": ratio(times, "with", "without"),
        }
        if args.memory:
            del functions
            peaks = {
                ours: peak_memory(prepare, cfg, setting, None, work),
                other: peak_memory(prepare, cfg, setting, name, work),
            }
            row["mib_with"] = quotient(peaks["with"], 2**20)
            row["mib_without"] = quotient(peaks["without"], 2**20)
            row["memory_with_over_without"] = quotient(peaks["with"], peaks["without"])
        rows.append(row)
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="smca_single_scale_R50_50ep", help="config name or file"
    )
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    add_setting(parser)
    add_arguments(parser, "ablation", rounds=5)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="comes last"
    )
    return parser.parse_args()


def main() -> int:
    args = parse()
    device = chosen_device(args)
    setting = Setting(tuple(args.size), args.batch, args.precision, str(device))
    cfg = read(args.config, args)
    rows = []
    for name in args.ablations:
        print(name, file=sys.stderr, flush=True)
        rows += measure(cfg, setting, name, args)
        write("ablation", rows, args.output, show=name == args.ablations[-1])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
