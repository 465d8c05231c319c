"""Start a run on PyPI packages: read the config, start the workers, train or evaluate."""

import argparse
import logging
import os
import sys
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from ..checkpoints import load
from ..config import get_cfg, load_cfg, require_own_model
from ..data.coco import trained_names
from ..distributed import rank
from ..engine.launch import launch
from ..engine.report import results_tables
from ..modeling.detector import build_detector
from .evaluator import Evaluator
from .trainer import Trainer

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Run what :func:`smca.engine.arguments.argument_parser` has parsed; return the exit code."""
    cfg = load_cfg(get_cfg(), args.config_file, args.opts)
    require_own_model(cfg)  # Detectron2's own models need Detectron2
    return launch(main, cfg, args)


def main(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train or evaluate in one worker, with a config that is prepared."""
    _setup_logging(cfg.OUTPUT_DIR)
    if args.eval_only:
        detector = build_detector(cfg).to(cfg.MODEL.DEVICE)
        load(detector, cfg.MODEL.WEIGHTS, strict=True)
        detector.class_names = detector.class_names or trained_names(cfg)
        if results := Evaluator(cfg, detector)():
            logger.info("results of %s\n\n%s", cfg.MODEL.WEIGHTS, results_tables(results))
        return
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    # A run that is refused until here leaves the folder of another run as it was.
    if rank() == 0:
        Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    trainer.train()


def _setup_logging(output_dir: str) -> None:
    """Have the first worker log to the terminal and to log.txt, and the others nowhere."""
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if rank() == 0:
        file = os.path.join(output_dir, "log.txt")
        handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(file, encoding="utf-8")]
    form, date = "[%(asctime)s %(name)s] %(levelname)s: %(message)s", "%m/%d %H:%M:%S"
    logging.basicConfig(format=form, datefmt=date, handlers=handlers, force=True)
    for name in ("smca", "fvcore"):
        logging.getLogger(name).setLevel(logging.INFO)
