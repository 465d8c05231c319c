#!/usr/bin/env python3
"""Check datasets in COCO's format: list what is wrong, count what they hold, draw samples.

The first pair of --json and --images is the dataset to train on; the others are to evaluate on.
The exit code is 1 if there are errors.

Examples:
    python tools/check_dataset.py --json train.json --images photos --output output/check
    python tools/check_dataset.py --json train.json --images photos --json val.json --images photos
    python tools/check_dataset.py --config-file my_data.yaml --verify
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torchvision.ops import box_convert

from dataset_checks.checks import CheckedDataset, check_dataset, check_together
from dataset_checks.findings import ERROR, INFO, WARNING, Finding
from dataset_checks.summary import format_summary, summarise
from smca import get_cfg
from smca.config import ConfigError, is_own_model, load_cfg, validate
from smca.data.coco import dataset_files
from smca.data.coco_format import box_fault
from smca.data.grey import count_grey_bits
from smca.data.images import read_rgb
from smca.engine.arguments import Parser, add_opts
from smca.engine.guard import guarded
from smca.visualization.detections import draw_detections, grid

LEVELS = (ERROR, WARNING, INFO)
LONGEST = 800  # side of an image in the grid, in pixels


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KEY VALUE pairs change the config: MODEL.SMCA.NUM_QUERIES 100",
    )
    parser.add_argument("--json", action="append", metavar="FILE", help="annotation file")
    parser.add_argument("--images", action="append", metavar="FOLDER", help="folder of its images")
    parser.add_argument("--config-file", metavar="FILE", help="config whose DATASETS to check")
    parser.add_argument(
        "--verify", action="store_true", help="decode every image, and find copies by content"
    )
    parser.add_argument("--entries", type=int, default=10, help="most entries printed of a finding")
    parser.add_argument("--output", metavar="FOLDER", help="for report.json and drawn samples")
    parser.add_argument("--samples", type=int, default=12, help="images drawn of a dataset")
    parser.add_argument("--overwrite", action="store_true", help="replace what --output has")
    add_opts(parser)
    args = parser.parse_args(argv)
    if bool(args.config_file) == bool(args.json):
        parser.error("give --json and --images, or --config-file")
    if len(args.json or ()) != len(args.images or ()):
        parser.error("each --json needs an --images, and the other way round")
    if min(args.entries, args.samples) < 1:
        parser.error("--entries and --samples are at least 1")
    return args


def run(args: argparse.Namespace) -> int:
    cfg = load_cfg(get_cfg(), args.config_file or "", [*named_pairs(args), *args.opts])
    validate(cfg)
    if not (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        raise ConfigError("DATASETS.TRAIN and DATASETS.TEST are empty; name the datasets to check")
    grey_bits, source = cfg.INPUT.GREY_BITS, ""
    if not grey_bits:
        grey_bits, source = count_grey_bits(cfg)
    if source:
        print(f"INPUT.GREY_BITS: {grey_bits}, as in {source}")
    checked = {
        name: check_dataset(
            name,
            *dataset_files(cfg, name),
            num_queries=cfg.MODEL.SMCA.NUM_QUERIES,
            max_dets=cfg.TEST.MAX_DETS_PER_IMAGE,
            grey_bits=grey_bits,
            verify=args.verify,
            needs_annotations=name in cfg.DATASETS.TRAIN,
        )
        for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    }
    check_together(
        [checked[name] for name in cfg.DATASETS.TRAIN],
        [checked[name] for name in cfg.DATASETS.TEST],
        num_classes=cfg.MODEL.SMCA.NUM_CLASSES if is_own_model(cfg) else 0,
    )
    summaries = {
        name: summarise(dataset.records, dataset.class_names) for name, dataset in checked.items()
    }
    for name, dataset in checked.items():
        show(dataset, summaries[name], args.entries)
    if args.output:
        write(Path(args.output), checked, summaries, args.samples, overwrite=args.overwrite)
    counts = [
        sum(p.level == level for c in checked.values() for p in c.findings) for level in LEVELS
    ]
    print("{} kinds of errors, {} of warnings".format(*counts))
    return 1 if counts[0] else 0


def named_pairs(args: argparse.Namespace) -> list[object]:
    """Return the config options that name the pairs of --json and --images."""
    if not args.json:
        return []
    names = ["train", "val", *(f"val{number}" for number in range(2, len(args.json)))]
    entries = [list(entry) for entry in zip(names, args.json, args.images, strict=False)]
    names = tuple(name for name, *_ in entries)
    used = ["DATASETS.TRAIN", names[:1], "DATASETS.TEST", names[1:]]
    return ["DATASETS.COCO_FORMAT", entries, *used]


def by_level(findings: dict[Finding, list[str]]) -> Iterable[tuple[Finding, list[str]]]:
    return sorted(findings.items(), key=lambda finding: LEVELS.index(finding[0].level))


def show(dataset: CheckedDataset, summary: dict, most: int) -> None:
    print(f"{dataset.name}: {dataset.json_file}, images in {dataset.image_root}")
    if dataset.categories:
        print(format_summary(summary))
    print()
    for finding, entries in by_level(dataset.findings):
        print(f"{finding.level}: {finding.what}: {len(entries)}")
        print(*(f"  {entry}" for entry in entries[:most]), sep="\n")
        if len(entries) > most:
            print(f"  and {len(entries) - most} more (all with --output or --entries)")
        print(f"  -> {finding.remedy}", end="\n\n")


def write(
    folder: Path,
    checked: dict[str, CheckedDataset],
    summaries: dict,
    samples: int,
    *,
    overwrite: bool,
) -> None:
    report = folder / "report.json"
    pictures = {name: folder / f"{name.replace('/', '_')}.png" for name in checked}
    for path in (report, *pictures.values()):
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; name another folder, or give --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    content = [
        {
            "name": name,
            "annotation_file": dataset.json_file,
            "image_folder": dataset.image_root,
            "summary": summaries[name],
            "findings": [
                {**vars(finding), "entries": entries}
                for finding, entries in by_level(dataset.findings)
            ],
        }
        for name, dataset in checked.items()
    ]
    report.write_text(json.dumps(content, indent=1))
    written = [report]
    for name, path in pictures.items():
        if drawn := draw_samples(checked[name], samples):
            grid(drawn).save(path)
            written.append(path)
    print("written:", *written)


def draw_samples(dataset: CheckedDataset, count: int) -> list[Image.Image]:
    """Draw some that EXIF turns, then the images with the most objects, and random others."""
    records = sorted(dataset.records, key=lambda record: -len(record["annotations"]))
    turned = [r for r in records if r["file_name"] in dataset.turned][: -(-count // 3)]
    records = [record for record in records if record not in turned]
    count -= len(turned)
    fullest, others = records[: -(-count // 2)], records[-(-count // 2) :]
    chosen = turned + fullest + random.Random(0).sample(others, min(count // 2, len(others)))
    drawn = []
    for record in chosen:
        try:
            image = read_rgb(record["file_name"], dataset.grey_bits)
        except OSError:
            continue
        width = image.width
        image.thumbnail((LONGEST, LONGEST))
        entries = [
            entry
            for entry in record["annotations"]
            if not box_fault(entry["bbox"], record["height"], record["width"])
        ]
        boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32)
        boxes = box_convert(boxes.reshape(-1, 4), "xywh", "xyxy") * (image.width / width)
        labels = [entry["category_id"] for entry in entries]
        drawn.append(draw_detections(image, boxes, labels, None, dataset.class_names))
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
