#!/usr/bin/env python3
"""Export a trained detector as one file that runs without this package, and check that file.

The ending tells the format: .onnx is ONNX, .pt2 is torch.export, .ts is TorchScript.
docs/EXPORT.md describes the inputs and outputs of the file; examples/ has a program that runs it.

Examples:
    python tools/export_model.py --config-file configs/smca_R50_50ep.yaml \
        --weights output/smca_R50_50ep/model_final.pth --output smca.onnx
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smca import get_cfg
from smca.config import is_own_model, load_cfg
from smca.engine.arguments import Parser, add_opts
from smca.engine.guard import guarded
from smca.errors import ExportError
from smca.inference.export import FORMATS, PixelDetector, export, metadata
from smca.inference.export_check import check_batches
from smca.inference.predictor import Predictor


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint (default: the run's own, or MODEL.WEIGHTS)"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="(default: by the ending of --output)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of all images in pixels (default: any size)",
    )
    parser.add_argument("--opset", type=int, help="ONNX opset (default: the exporter's own)")
    parser.add_argument("--no-check", action="store_true", help="do not run the written file")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    add_opts(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    output, form = Path(args.output), args.format
    if form is None:
        endings = {chosen.suffix: name for name, chosen in FORMATS.items()}
        if output.suffix not in endings:
            raise ExportError(
                f"--output is {args.output}; give --format, or end it in {' or '.join(endings)}"
            )
        form = endings[output.suffix]
    check_arguments(args, output, form)
    # Compiled code cannot be captured.
    opts = [*args.opts, "MODEL.SMCA.COMPILE", False]
    cfg = load_cfg(get_cfg(), args.config_file, opts, to_train=False)
    if not is_own_model(cfg):
        raise ExportError(
            f"{args.config_file} is Detectron2's own {cfg.MODEL.META_ARCHITECTURE}; "
            "Detectron2's tools/deploy/export_model.py exports its models"
        )
    predictor = Predictor(args.config_file, args.weights, opts=opts, device="cpu")
    print(predictor.weights, flush=True)
    cfg = predictor.cfg
    model = PixelDetector(cfg, predictor.detector)
    size = args.size and tuple(args.size)
    found = export(
        model,
        output,
        form=form,
        metadata=metadata(cfg, predictor.class_names, size),
        opset=args.opset,
        checks=() if args.no_check else check_batches(cfg, least=model.least_side, size=size),
    )
    sizes = "of {}x{} pixels".format(*size) if size else "of any size"
    print(f"{output}: {form}, {output.stat().st_size / 2**20:.0f} MiB, images {sizes}")
    for difference in found:
        print(f"  checked on {difference}")
    print(predictor.weights)


def check_arguments(args: argparse.Namespace, output: Path, form: str) -> None:
    """Refuse arguments that cannot work, before anything is read or built."""
    if output.is_dir() or not output.parent.is_dir():
        raise ExportError(f"{output} cannot be written: give a path in a folder that exists")
    if output.exists() and not args.overwrite:
        raise ExportError(f"{output} exists; give --overwrite to replace it")
    if args.size and min(args.size) < 1:
        raise ExportError(f"--size is {args.size}; both sides must be at least 1 pixel")
    if args.opset is not None and (form != "onnx" or args.opset < 18):
        raise ExportError(f"--opset is {args.opset}; it is for ONNX, and must be at least 18")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
