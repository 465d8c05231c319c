"""Start a run on PyPI packages: read the config, start the workers, train or evaluate."""

from __future__ import annotations

import argparse
import logging
import os
import sys

import torch
from fvcore.common.config import CfgNode

from ..config import get_cfg, load_cfg, require_own_model
from ..distributed import rank
from ..engine.launch import launch
from .trainer import Trainer, evaluate_only


def run(args: argparse.Namespace) -> int:
    """Run the command line of :func:`smca.engine.arguments.argument_parser`.

    Returns:
        the exit code.

    Raises:
        ConfigError, DatasetError, CheckpointError, FileNotFoundError: what a user can mend.
        FloatingPointError: a loss that is not finite.
    """
    cfg = load_cfg(get_cfg(), args.config_file, args.opts)
    require_own_model(cfg)  # Detectron2's own models need Detectron2
    return launch(main, cfg, args)


def main(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train or evaluate in one worker, with a config that is prepared."""
    _setup_logging(cfg.OUTPUT_DIR if rank() == 0 else None)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    if args.eval_only:
        evaluate_only(cfg)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    # A run that is refused until here leaves the folder of another run as it was.
    if rank() == 0:
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as file:
            file.write(cfg.dump())
    trainer.train()


def _setup_logging(output_dir: str | None) -> None:
    """Log the project and fvcore to the terminal and OUTPUT_DIR/log.txt, or nowhere."""
    handlers: list[logging.Handler] = []
    if output_dir is not None:
        handlers = [
            logging.StreamHandler(sys.stdout),
            logging.FileHandler(os.path.join(output_dir, "log.txt"), encoding="utf-8"),
        ]
    form = logging.Formatter("[%(asctime)s %(name)s] %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    for name in ("smca", "fvcore"):
        package = logging.getLogger(name)
        package.setLevel(logging.INFO)
        package.propagate = False
        package.handlers = handlers
    for handler in handlers:
        handler.setFormatter(form)
