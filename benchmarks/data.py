#!/usr/bin/env python3
"""Time reading, augmenting and loading images.

The benchmark draws images of COCO's size and saves them as JPEG and PNG files. It prints four
tables:
mapper: the seconds per image that each step of a host's mapper adds to the steps above it, with all
  files cached in memory. "crop" is the mean cost of resizing and cropping half of the images before
  their final resize. For "decode" and "all", plain_over is the time with plain reading, which
  copies the image in each of Pillow's calls, divided by the project's time.
batch: the seconds to normalise and pad a batch of the mapper's images on --device; plain_over is
  the time of a plain implementation divided by the project's, and error is the largest difference
  between the two batches.
loader: images per second by number of loader processes, and as a multiple of the first number's.
  With --step-seconds, also the share of the time that training steps wait for their batch; on a GPU
  the host sleeps during a step, on a CPU the step keeps --threads cores busy.
draft: decoding JPEG files at a reduced size that suffices for a resize to --draft-short, beside
  decoding them whole; the ratio of the times includes the resize, and the differences between the
  pixels count levels of 255.

Example:
    python benchmarks/data.py --workers 0 2 4 --step-seconds 0.25
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from data_workload import Mappers, importable, load, pad_plainly, read_plainly, resized
from measuring import ROOT, Row, add_arguments, chosen_device, interleave, ratio, summary, write
from photos import FORMATS, draw_photo, write_photos
from torchvision.transforms.v2 import functional as F

from smca.data.dataset import TrainingDataset, seeded
from smca.data.images import read_rgb
from smca.data.mapper import resized_shape
from smca.data.sampler import Draw
from smca.engine.arguments import add_import
from smca.engine.guard import guarded
from smca.modeling.detector import pad_images, pixel_statistics
from smca.structures import Size

CPU = torch.device("cpu")

_PLAIN = ["INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.CROP.ENABLED", False]
# For each step, the changes to the config that remove all later steps from the mapper.
STEPS = {
    "boxes": [*_PLAIN, "INPUT.RANDOM_FLIP", "none"],
    "flip": _PLAIN,
    "resize": ["INPUT.CROP.ENABLED", False],
    "crop": [],
}


def mapper_rows(
    mappers: Mappers, kind: str, records: list[dict], args: argparse.Namespace
) -> list[Row]:
    """Return a row for each step of a host's mapper, and one for all steps."""

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
    """Return the row of normalising and padding a batch."""
    device = torch.device(args.device)
    cfg = mappers.host.read(args.config_file, [])
    dataset = TrainingDataset(records, mappers.build(cfg))
    samples = [dataset[Draw(index % len(records), index)] for index in range(args.batch)]
    images = [sample["image"] if isinstance(sample, dict) else sample.image for sample in samples]
    if device.type == "cuda":
        # Loaders return pinned images, too.
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


def loader_rows(
    mappers: Mappers, kind: str, records: list[dict], args: argparse.Namespace
) -> list[Row]:
    """Return a row for each number of loader processes."""
    # This interleaves by itself, because the time to start the processes does not count.
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


def draft_row(folder: Path, size: Size, short: int, args: argparse.Namespace) -> Row:
    """Return the row of decoding JPEG files of (h, w) ``size`` for a short side of ``short``."""
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
    """Return a size as "HxW"."""
    return "x".join(map(str, size))


def numbers(size: str) -> Size:
    """Return "HxW" as (h, w)."""
    height, width = map(int, size.split("x"))
    return height, width


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = os.cpu_count()
    powers = [2**power for power in range(8) if 2**power < cores]
    parser.add_argument("--config-file", default=str(ROOT / "configs/smca_R50_50ep.yaml"))
    add_import(parser)
    parser.add_argument("--files", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--images", type=int, default=32, help="number of files of each kind")
    parser.add_argument(
        "--size", type=numbers, default=(480, 640), metavar="HxW", help="size of the images"
    )
    parser.add_argument(
        "--workers",
        nargs="+",
        type=int,
        default=[0, *powers, cores],
        help="numbers of loader processes",
    )
    parser.add_argument("--batch", type=int, default=2, help="images in a batch")
    parser.add_argument(
        "--batches", type=int, default=16, help="batches to load, at least four for each process"
    )
    parser.add_argument(
        "--step-seconds", type=float, help="seconds of a training step with --batch images"
    )
    parser.add_argument(
        "--draft-sizes",
        nargs="*",
        type=numbers,
        default=[(480, 640), (960, 1280), (1920, 2560)],
        metavar="HxW",
        help="image sizes to decode at reduced size",
    )
    parser.add_argument(
        "--draft-short", nargs="+", type=int, default=[480, 800], help="short sides to resize to"
    )
    parser.add_argument("--draft-images", type=int, default=4, help="images of each size")
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
