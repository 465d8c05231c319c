#!/usr/bin/env python3
"""Time how images are read, augmented and loaded.

The images are drawn, of COCO's size, and saved as JPEG and PNG files. Four tables:
mapper: seconds an image of each step of a host's mapper, which is what the step adds to those
  above it; files are in memory. "crop" is what it costs that half of the images are resized and
  cropped before their resize. Of reading ("decode") and of the whole also how many times longer it
  takes where reading is written plainly, with a copy for each of Pillow's calls.
batch: seconds to normalise and pad a batch of the mapper's images on --device, and how many times
  longer that takes written plainly; the error is the largest difference between the two.
loader: images a second by number of loader processes, and how many times those of the first. With
  --step-seconds also the share of the time that steps wait for their batch: on a GPU the host
  sleeps during a step, on a CPU the step keeps --threads cores busy.
draft: JPEG files decoded at reduced size where a resize to --draft-short allows, beside the whole
  file; how much faster that is with the resize, and by how many of 255 levels the pixels differ.

Example:
    python benchmarks/data.py --workers 0 2 4 --step-seconds 0.25
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from fvcore.common.config import CfgNode
from measuring import ROOT, Row, add_arguments, chosen_device, interleave, ratio, summary, write
from photos import FORMATS, draw_photo, write_photos
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from smca.analysis.host import NATIVE, Host
from smca.data.dataset import TrainingDataset, seeded
from smca.data.images import read_rgb
from smca.data.loader import build_train_loader
from smca.data.mapper import DetrMapper, resized_shape
from smca.data.sampler import Draw
from smca.engine.guard import guarded
from smca.modeling.detector import pad_images, pixel_statistics
from smca.structures import Size

CPU = torch.device("cpu")

_PLAIN = ["INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.CROP.ENABLED", False]
# By step: how the config is changed so that a mapper takes no step after it.
STEPS = {
    "boxes": [*_PLAIN, "INPUT.RANDOM_FLIP", "none"],
    "flip": _PLAIN,
    "resize": ["INPUT.CROP.ENABLED", False],
    "crop": [],
}


@dataclass(frozen=True)
class Mappers:
    """A host, and what makes its mapper for training from a config."""

    host: Host
    build: Callable[[CfgNode], Callable[[dict], object]]


def importable() -> list[Mappers]:
    """Those of the hosts that are there."""
    found = [Mappers(NATIVE, lambda cfg: DetrMapper.from_config(cfg, is_train=True))]
    try:
        from smca.d2.analysis import DETECTRON2
        from smca.d2.dataset_mapper import DetrDatasetMapper
    except ImportError:
        return found
    return [*found, Mappers(DETECTRON2, lambda cfg: DetrDatasetMapper(cfg, is_train=True))]


def read_plainly(file_name: str) -> Image.Image:
    """An image file as 8-bit RGB, of an 8-bit one."""
    with Image.open(file_name) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def pad_plainly(images: Sequence[Tensor], *, mean: Tensor, std: Tensor) -> tuple[Tensor, None]:
    """The batch of :func:`pad_images`."""
    height, width = (max(sides) for sides in zip(*(i.shape[1:] for i in images), strict=True))
    batch = torch.zeros(len(images), 3, height, width, device=mean.device)
    for slot, image in zip(batch, images, strict=True):
        normalised = (image.to(mean.device) - mean) / std
        slot[:, : image.shape[1], : image.shape[2]] = normalised
    return batch, None


def mapper_rows(
    mappers: Mappers, kind: str, records: list[dict], args: argparse.Namespace
) -> list[Row]:
    def over_all(work: Callable[[dict], object]) -> Callable[[], None]:
        def run() -> None:
            for seed, record in enumerate(records):
                with seeded(seed):
                    work(record)

        return run

    maps = {
        step: mappers.build(mappers.host.read(args.config_file, changes))
        for step, changes in STEPS.items()
    }

    def map_plainly(record: dict) -> object:
        with mock.patch("smca.data.images.read_rgb", read_plainly):
            return maps["crop"](record)

    plain = {
        "decode": over_all(lambda record: read_plainly(record["file_name"])),
        "all": over_all(map_plainly),
    }
    functions = {
        "decode": over_all(lambda record: read_rgb(record["file_name"])),
        "tensor": over_all(lambda record: maps["boxes"]({**record, "annotations": []})),
        **{step: over_all(each) for step, each in maps.items()},
        **{f"plain {step}": each for step, each in plain.items()},
    }
    times = interleave(
        functions,
        device=CPU,
        rounds=args.rounds,
        warm_up=1,
        least_seconds=args.least_seconds,
    )
    size = sum(os.path.getsize(record["file_name"]) for record in records) / len(records)
    plainly = {step: times.pop(f"plain {step}") for step in plain}
    same = {"files": kind, "mean_kib": size / 1024, "host": mappers.host.name}
    whole = times["crop"]
    before = [0.0] * len(whole)
    rows = []
    for step, after in times.items():
        added = [(b - a) / len(records) for a, b in zip(before, after, strict=True)]
        share = sum(added) * len(records) / sum(whole)
        rows.append({**same, "step": step, "seconds": summary(added), "share": share})
        before = after
    each = [seconds / len(records) for seconds in whole]
    rows.append({**same, "step": "all", "seconds": summary(each), "share": 1.0})
    times["all"] = whole
    for row in rows:
        step = row["step"]
        both = {"plain": plainly[step], step: times[step]} if step in plain else {}
        row["plain_over"] = ratio(both, "plain", step)
    return rows


def batch_row(mappers: Mappers, records: list[dict], args: argparse.Namespace) -> Row:
    device = torch.device(args.device)
    cfg = mappers.host.read(args.config_file, [])
    dataset = TrainingDataset(records, mappers.build(cfg))
    samples = [dataset[Draw(index % len(records), index)] for index in range(args.batch)]
    images = [sample["image"] if isinstance(sample, dict) else sample.image for sample in samples]
    if device.type == "cuda":
        # As loaders give them.
        images = [image.pin_memory() for image in images]
    mean, std = (part.to(device) for part in pixel_statistics(cfg))
    functions = {
        name: partial(function, images, mean=mean, std=std)
        for name, function in (("pad", pad_images), ("plain", pad_plainly))
    }
    times = interleave(
        functions, device=device, rounds=args.rounds, least_seconds=args.least_seconds
    )
    found, plain = (function()[0] for function in functions.values())
    return {
        "host": mappers.host.name,
        "batch": text(found.shape),
        "device": args.device,
        "seconds": summary(times["pad"]),
        "plain_over": ratio(times, "plain", "pad"),
        "error": float((found - plain).abs().max()),
    }


def load(
    mappers: Mappers, records: list[dict], workers: int, args: argparse.Namespace
) -> tuple[float, float | None]:
    """Seconds an image of a loader that is always asked for more, and what share of the time a
    training that takes --step-seconds a step waits for it.
    """
    changes = ["DATALOADER.NUM_WORKERS", workers, "MODEL.DEVICE", args.device]
    cfg = mappers.host.read(args.config_file, changes)
    loader = build_train_loader(
        dataset=records,
        mapper=mappers.build(cfg),
        total_batch_size=args.batch,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=workers,
    )
    batches = iter(loader)
    # Until the processes have started and what they fetched ahead is used up.
    for _ in range(1 + 2 * workers):
        next(batches)
    count = max(args.batches, 4 * workers)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    seconds = (time.perf_counter() - begin) / count / args.batch
    if args.step_seconds is None:
        return seconds, None
    waited, begin = 0.0, time.perf_counter()
    for _ in range(count):
        stand_in(args.step_seconds, args.device)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    return seconds, waited / (time.perf_counter() - begin)


def stand_in(seconds: float, device: str) -> None:
    """Spend the time of a training step as the host does: asleep, or at work on a CPU."""
    if device != "cpu":
        time.sleep(seconds)
        return
    matrix = torch.rand(512, 512)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        matrix @ matrix


def loader_rows(
    mappers: Mappers, kind: str, records: list[dict], args: argparse.Namespace
) -> list[Row]:
    # In turns, but not by interleave: starting the processes does not count.
    found: dict[int, list[tuple]] = {workers: [] for workers in args.workers}
    for _ in range(args.rounds):
        for workers, results in found.items():
            results.append(load(mappers, records, workers, args))
    rows = []
    times = {str(workers): [each for each, _ in results] for workers, results in found.items()}
    for workers, results in found.items():
        row = {"files": kind, "host": mappers.host.name, "workers": workers, "batch": args.batch}
        row["images_per_second"] = summary([1 / each for each, _ in results])
        row["over_first"] = ratio(times, str(args.workers[0]), str(workers))
        waiting = args.step_seconds is not None
        row["waiting_share"] = summary([share for _, share in results]) if waiting else None
        rows.append(row)
    return rows


def resized(file: Path, shape: Size, *, draft: bool) -> tuple[Image.Image, Size]:
    """A JPEG file's image at (h, w), and the (h, w) it was decoded at."""
    if not draft:
        image = read_rgb(str(file))
    else:
        with Image.open(file) as opened:
            opened.draft("RGB", shape[::-1])
            image = opened.convert("RGB")
    return F.resize(image, list(shape)), (image.height, image.width)


def draft_row(folder: Path, size: Size, short: int, args: argparse.Namespace) -> Row:
    folder.mkdir()
    files = [folder / f"{index}.jpg" for index in range(args.draft_images)]
    for index, file in enumerate(files):
        draw_photo(index, size)[0].save(file, **FORMATS["jpg"])
    shape = resized_shape(*size, short, float("inf"))

    def over_all(*, draft: bool) -> Callable[[], list]:
        return lambda: [resized(file, shape, draft=draft) for file in files]

    functions = {"whole": over_all(draft=False), "draft": over_all(draft=True)}
    times = interleave(
        functions, device=CPU, rounds=args.rounds, warm_up=1, least_seconds=args.least_seconds
    )
    wholes, drafts = (
        torch.stack([F.pil_to_tensor(image) for image, _ in function()]).float()
        for function in functions.values()
    )
    difference = (wholes - drafts).abs()
    return {
        "size": text(size),
        "resized": text(shape),
        "decoded": text(resized(files[0], shape, draft=True)[1]),
        **{f"{k}_seconds": summary([x / len(files) for x in v]) for k, v in times.items()},
        "whole_over_draft": ratio(times, "whole", "draft"),
        "mean_difference": float(difference.mean()),
        "largest_difference": float(difference.max()),
    }


def text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def numbers(size: str) -> Size:
    height, width = map(int, size.split("x"))
    return height, width


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = os.cpu_count()
    powers = [2**power for power in range(8) if 2**power < cores]
    parser.add_argument("--config-file", default=str(ROOT / "configs/smca_R50_50ep.yaml"))
    parser.add_argument("--files", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--images", type=int, default=32, help="files of either kind")
    parser.add_argument("--size", type=numbers, default=(480, 640), metavar="HxW", help="of these")
    parser.add_argument(
        "--workers", nargs="+", type=int, default=[0, *powers, cores], help="numbers of processes"
    )
    parser.add_argument("--batch", type=int, default=2, help="images of a batch")
    parser.add_argument(
        "--batches", type=int, default=16, help="to load; four a process where that is more"
    )
    parser.add_argument("--step-seconds", type=float, help="of a training step of --batch images")
    parser.add_argument(
        "--draft-sizes",
        nargs="*",
        type=numbers,
        default=[(480, 640), (960, 1280), (1920, 2560)],
        metavar="HxW",
    )
    parser.add_argument("--draft-short", nargs="+", type=int, default=[480, 800])
    parser.add_argument("--draft-images", type=int, default=4)
    add_arguments(parser, "data", rounds=5)
    return parser.parse_args()


def main() -> int:
    args = parse()
    chosen_device(args)
    hosts = importable()
    mapper, batch, loader, draft = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.files:
            records = write_photos(Path(folder), args.images, size=args.size, kind=kind).records
            for mappers in hosts:
                print(kind, mappers.host.name, file=sys.stderr, flush=True)
                mapper += mapper_rows(mappers, kind, records, args)
                loader += loader_rows(mappers, kind, records, args)
                if kind == args.files[0]:
                    batch.append(batch_row(mappers, records, args))
        for size in args.draft_sizes:
            for short in args.draft_short:
                place = Path(folder) / f"{text(size)}-{short}"
                draft.append(draft_row(place, size, short, args))
    write("data", [*mapper, *batch, *loader, *draft], args.output)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
