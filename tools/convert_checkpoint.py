#!/usr/bin/env python3
"""Convert a file that others released to a checkpoint of this project.

It reads files that the authors' PyTorch programs of DETR, Conditional DETR, UP-DETR (pre-trained or
fine-tuned), single-scale SMCA and SMCA with the depthwise encoder wrote, and torchvision's ResNets.
It converts every tensor, or writes nothing and names those that do not fit. It prints the config
for the checkpoint.

With --from ema it reads a checkpoint of this project, and writes its averaged weights as the
"model" that Detectron2's tools load.

Examples:
    python tools/convert_checkpoint.py --from auto detr-r50-e632da11.pth detr_R50.pth
    python tools/convert_checkpoint.py --from ema output/model_final.pth average.pth
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from released_files import convert, matching_configs, read_options, read_released, recognise
from released_names import KINDS
from smca import build_detector, get_cfg, model_zoo
from smca.checkpoints import pop_weights, read_checkpoint, write_checkpoint
from smca.checkpoints.loading import num_logits
from smca.config import flatten, load_cfg
from smca.data.coco import COCO_CLASSES
from smca.engine.arguments import Parser, add_import
from smca.engine.guard import guarded
from smca.errors import CheckpointError


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from",
        dest="kind",
        choices=("auto", "ema", *KINDS),
        default="auto",
        help="the kind of file; auto recognises released ones by the names of their tensors",
    )
    parser.add_argument(
        "--config-file",
        help="the config to convert for (default: the matching one of configs/); with "
        "LOSS.CLASSIFICATION softmax the no-object column is kept, with focal it is dropped",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("input", metavar="IN", help="the file as it was released")
    parser.add_argument("output", metavar="OUT", help="the checkpoint to write, a .pth file")
    add_import(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    check_output(args)
    if args.kind == "ema":
        write_average(args)
        return
    released = read_released(args.input)
    kind = recognise(released) if args.kind == "auto" else args.kind
    configs = [args.config_file] if args.config_file else files_of(matching_configs(released, kind))
    found = read_options(released, kind)
    configured = flatten(load_cfg(get_cfg(), configs[0]))
    options = {key: value for key, value in found.items() if configured.get(key) != value}
    options = [part for pair in options.items() for part in pair]
    with torch.device("meta"):
        detector = build_detector(load_cfg(get_cfg(), configs[0], options))
    model, left_out = convert(released, kind, detector.state_dict())

    content = {"model": model, "__author__": KINDS[kind].title}
    content |= {"config_file": configs[0], "options": options}
    if KINDS[kind].detects:
        content["class_names"] = list(COCO_CLASSES.values())
    write(content, args.output)
    print(f"{args.input}: {KINDS[kind].title}")
    for key, value in found.items():
        print(f"  {key} {value}")
    if left_out:
        counters = [name for name in left_out if name.endswith(".num_batches_tracked")]
        others = [name for name in left_out if name not in counters]
        print("left out on purpose:", *others, f"and {len(counters)} num_batches_tracked")
    print(f"{args.output}: {len(model)} tensors for {' or '.join(configs)}")
    if len(configs) > 1:
        print("the file does not show whether it was trained with DC5 (res5 at stride 16)")
    if num_logits(model) > len(COCO_CLASSES):
        print("softmax scores are exact as far as training left ids without a class no probability")
    texts = [part if isinstance(part, str) else json.dumps(part) for part in options]
    arguments = ["MODEL.WEIGHTS", args.output, *texts]
    if kind == "up_detr_pretrained":  # fine-tuning has the same sizes
        configs = files_of(["baselines/up_detr_R50_300ep"])
    purpose = ["--eval-only"] if KINDS[kind].detects else []
    for config in configs:
        print(shlex.join(["python", "train_net.py", "--config-file", config, *purpose, *arguments]))


def write_average(args: argparse.Namespace) -> None:
    content = read_checkpoint(args.input)
    if "ema" not in content:
        raise CheckpointError(
            f"{args.input} has no averaged weights: a run keeps them with MODEL.EMA.ENABLED True"
        )
    kept = {key: content[key] for key in ("class_names", "query_groups") if key in content}
    model = pop_weights(content)
    write({"model": model, **kept}, args.output)
    print(f"{args.output}: {len(model)} averaged tensors of {args.input}")


def write(content: dict, output: str) -> None:
    try:
        write_checkpoint(content, output)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error}") from error


def check_output(args: argparse.Namespace) -> None:
    """Refuse to replace a file, or to write where no file can be, before anything is read."""
    output = Path(args.output)
    if output.is_dir() or not output.parent.is_dir():
        raise CheckpointError(f"{output} cannot be written: name a file in a folder that exists")
    if output.suffix == ".pkl":
        raise CheckpointError(f"{output}: .pkl files are read as pickles; name it .pth")
    if output.exists() and not args.overwrite:
        raise CheckpointError(f"{output} exists; give --overwrite to replace it")
    if output.exists() and Path(args.input).exists() and output.samefile(args.input):
        raise CheckpointError(f"{output} is the input file itself; name another")


def files_of(names: list[str]) -> list[str]:
    return [os.path.relpath(model_zoo.config_file(name)) for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
