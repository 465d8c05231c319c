"""Starting a run: the config, one or many processes, training or evaluation."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

import torch
from fvcore.common.config import CfgNode

from ..config import get_cfg, load_cfg, require_own_model
from ..engine.launch import Worker, run_workers
from .trainer import Trainer, evaluate_only

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Run what :func:`smca.engine.arguments.argument_parser` read; returns the exit code.

    Raises:
        ConfigError, DatasetError, CheckpointError, FileNotFoundError: what a user can mend.
        FloatingPointError: a loss that is not finite.
    """
    cfg = load_cfg(get_cfg(), args.config_file, args.opts)
    require_own_model(cfg)  # those of Detectron2 only run there
    return run_workers(_main, cfg, args)


def _main(cfg: CfgNode, args: argparse.Namespace, worker: Worker) -> None:
    _setup_logging(cfg.OUTPUT_DIR if worker.rank == 0 else None)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    if args.eval_only:
        evaluate_only(cfg)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if worker.rank == 0:  # not before: a run that is refused leaves the one that was here as it was
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as file:
            file.write(cfg.dump())
    trainer.train()


def _setup_logging(output_dir: str | None) -> None:
    """Messages of the project and fvcore to the terminal and OUTPUT_DIR/log.txt (first worker)."""
    # fvcore decorates with torch.jit, which today's torch announces to remove.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
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
