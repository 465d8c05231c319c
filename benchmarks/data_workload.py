"""The work that data.py measures: mappers, plain references, loaders and reduced decoding."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from smca.analysis.host import NATIVE, Host
from smca.data.images import read_rgb
from smca.data.loader import build_train_loader
from smca.data.mapper import DetrMapper
from smca.structures import Size


@dataclass(frozen=True)
class Mappers:
    """A host, and the function that builds its training mapper from a config."""

    host: Host
    build: Callable[[CfgNode], Callable[[dict], object]]


def importable() -> list[Mappers]:
    """Return the hosts that are installed, with their mappers."""
    found = [Mappers(NATIVE, lambda cfg: DetrMapper.from_config(cfg, is_train=True))]
    try:
        from smca.d2.analysis import DETECTRON2
        from smca.d2.dataset_mapper import DetrDatasetMapper
    except ImportError:
        return found
    return [*found, Mappers(DETECTRON2, lambda cfg: DetrDatasetMapper(cfg, is_train=True))]


def read_plainly(file_name: str, grey_bits: int = 0) -> Image.Image:
    """Return the image of an 8-bit file as 8-bit RGB, in place of ``read_rgb``."""
    with Image.open(file_name) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def pad_plainly(images: Sequence[Tensor], *, mean: Tensor, std: Tensor) -> tuple[Tensor, None]:
    """Return the batch that ``pad_images`` returns."""
    height, width = (max(sides) for sides in zip(*(i.shape[1:] for i in images), strict=True))
    batch = torch.zeros(len(images), 3, height, width, device=mean.device)
    for slot, image in zip(batch, images, strict=True):
        normalised = (image.to(mean.device) - mean) / std
        slot[:, : image.shape[1], : image.shape[2]] = normalised
    return batch, None


def load(
    mappers: Mappers, records: list[dict], workers: int, args: argparse.Namespace
) -> tuple[float, float | None]:
    """Return a loader's seconds per image, and the share of its time that a training waits.

    The first number is measured with a consumer that always asks for the next batch. The second
    belongs to a training whose steps take --step-seconds; it is None without that flag.
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
    # Wait until the processes have started, and use up the batches that they prefetched.
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
    """Spend the time of a training step as the host does: busy on a CPU, asleep otherwise."""
    if device != "cpu":
        time.sleep(seconds)
        return
    matrix = torch.rand(512, 512)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        matrix @ matrix


def resized(file: Path, shape: Size, *, draft: bool) -> tuple[Image.Image, Size]:
    """Return a JPEG file's image resized to ``shape``, and the (h, w) at which it was decoded."""
    if not draft:
        image = read_rgb(str(file))
    else:
        with Image.open(file) as opened:
            opened.draft("RGB", shape[::-1])
            image = opened.convert("RGB")
    return F.resize(image, list(shape)), (image.height, image.width)
