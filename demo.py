#!/usr/bin/env python3
"""Detect objects in images and videos, and draw them.

    python demo.py --config-file configs/smca_R50_50ep.yaml --weights model_final.pth \\
        --input a.jpg b.png photos/ 'more/*.jpg' --output out/ --save-json out/results.json

The JSON file has COCO's format for results: a list of {"image_id", "category_id", "bbox", "score"}
with bbox [x, y, w, h] in pixels, and also "file_name", and "frame" (from 0) in videos. If all
inputs are images of one of the config's datasets, the ids are those of its annotation file.
Otherwise image_id counts images and frames from 1, and category_id is the contiguous index of the
class plus 1.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from smca import Predictor
from smca.engine.arguments import Parser, add_opts
from smca.engine.guard import guarded
from smca.hosts import choose_engine
from smca.inference import sources
from smca.inference.results import CocoResults
from smca.visualization.detections import draw_detections

# Detectron2 and fvcore use torch.jit, which is deprecated.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KEY VALUE pairs change the config: INPUT.MIN_SIZE_TEST 600",
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a YAML file, or its name in configs/")
    add("--weights", metavar="FILE", help="checkpoint (default: the run's own, or MODEL.WEIGHTS)")
    add(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="images, videos, patterns, and folders with images directly inside",
    )
    add("--video-input", action="append", metavar="FILE", help="the same as --input")
    add(
        "--webcam",
        type=int,
        nargs="?",
        const=0,
        metavar="INDEX",
        help="look through a camera, the first without INDEX, until Ctrl-C",
    )
    add(
        "--output",
        default="output/demo",
        metavar="FOLDER",
        help="folder for the pictures, which keep the names of the inputs (default: %(default)s)",
    )
    add("--save-json", metavar="FILE", help="write the detections in COCO's format, too")
    add("--overwrite", action="store_true", help="replace pictures and results that exist")
    add(
        *("--threshold", "--confidence-threshold"),
        type=float,
        default=0.3,
        help="least score (default: %(default)s)",
    )
    add("--batch", type=int, default=1, help="images in a batch (default: %(default)s)")
    add("--device", help="cuda, cuda:1, cpu ... (default: MODEL.DEVICE, or cpu without a GPU)")
    add(
        "--engine",
        choices=("auto", "detectron2", "native"),
        default="auto",
        help="host that runs the model; auto takes Detectron2 if it is installed",
    )
    add_opts(parser)
    args = parser.parse_args(argv)
    if args.batch < 1:
        parser.error(f"--batch is {args.batch}; it must be at least 1")
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold is {args.threshold:g}; scores are from 0 to 1")
    if args.webcam is not None and args.webcam < 0:
        parser.error(f"--webcam is {args.webcam}; cameras have numbers from 0")
    args.input += args.video_input or []
    return args


def run(args: argparse.Namespace) -> int:
    engine, reason = choose_engine(args.engine)
    print(reason, flush=True)
    found = sources.gather(args.input, args.output, camera=args.webcam)
    predictor = Predictor(
        args.config_file, args.weights, opts=args.opts, device=args.device, engine=engine
    )
    print(predictor.weights, flush=True)
    files = [source.path for source in found if isinstance(source.path, str)]
    used = [args.config_file, predictor.weights.path]
    outputs = [source.output for source in found]
    outputs += [Path(args.save_json)] if args.save_json else []
    sources.check_outputs(outputs, [*files, *used], overwrite=args.overwrite)
    pictures = [] if any(source.is_video for source in found) else files
    results = CocoResults(predictor.cfg, predictor.class_names, pictures)
    skipped = []

    def skip(source: sources.Source, reason: str) -> None:
        skipped.append(source.name)
        tqdm.write(f"skipped {source.name}, which cannot be read: {reason}", file=sys.stderr)

    seconds = []
    frames = sources.read_frames(found, skip, grey_bits=predictor.cfg.INPUT.GREY_BITS)
    progress = tqdm(total=sources.count_frames(found), unit=" images")
    try:
        with progress, contextlib.closing(sources.FrameWriter()) as writer:
            while batch := list(islice(frames, args.batch)):
                begun = time.perf_counter()
                detections = predictor([frame.image for frame in batch], args.threshold)
                seconds.append((time.perf_counter() - begun) / len(batch))
                for frame, result in zip(batch, detections, strict=True):
                    picture = draw_detections(
                        frame.image,
                        result.boxes.numpy(),
                        result.labels.tolist(),
                        result.scores.tolist(),
                        predictor.class_names,
                        threshold=args.threshold,
                        # videos keep their size
                        least_side=384 if frame.number is None else 0,
                    )
                    writer.write(frame, picture)
                    if args.save_json:  # otherwise a camera's entries would pile up
                        results.add(frame, result)
                progress.update(len(batch))
    except KeyboardInterrupt:
        if args.webcam is None:
            raise
    if args.save_json:
        Path(args.save_json).write_text(json.dumps(results.entries))
        print(f"{len(results.entries)} detections in {args.save_json}")
    print(f"pictures in {args.output}, by {predictor.weights.path}")
    if seconds:
        # The first batch warms up.
        counted = seconds[1:] or seconds
        print(
            f"{statistics.median(counted):.4f} s an image, without reading and drawing "
            f"(median of {len(counted)}{', without the first' if len(seconds) > 1 else ''})"
        )
    if skipped:
        print(f"{len(skipped)} inputs could not be read: {', '.join(skipped)}", file=sys.stderr)
    return 1 if skipped else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return guarded(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
