"""Start a run on Detectron2: read the config, start the workers, train or evaluate."""

import argparse
import atexit
import contextlib
import logging
import sys
from pathlib import Path
from typing import TextIO

import detectron2.engine
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import load_cfg
from ..data.coco import trained_names
from ..engine.guard import explain
from ..engine.launch import launch, torchrun_worker
from .checkpointer import SMCACheckpointer
from .datasets import register_datasets
from .predictor import Detectron2Host, require_registered
from .trainer import Trainer

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Run what :func:`smca.engine.arguments.argument_parser` has parsed; return the exit code."""
    cfg = load_cfg(Detectron2Host.read(args.config_file), opts=args.opts)
    require_registered(cfg)
    return launch(main, cfg, args, start=detectron2.engine.launch)


def main(
    cfg: CfgNode,
    args: argparse.Namespace,
    *,
    trainer: type[Trainer] = Trainer,
    config: object = None,
) -> None:
    """Train or evaluate in one worker, with a config that is prepared.

    Args:
        trainer: builds the parts and trains them.
        config: is written to config.yaml instead of ``cfg``.
    """
    if worker := torchrun_worker(args):
        # Detectron2's launch does this for the workers that it starts.
        comm.create_local_process_group(worker.local_world_size)
    register_datasets(cfg)
    rank = comm.get_rank()
    if args.eval_only:
        # default_setup would replace the run's config.yaml by that of the evaluation.
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")
    else:
        file = Path(cfg.OUTPUT_DIR, "config.yaml")
        anothers = file.read_bytes() if rank == 0 and file.exists() else None
        default_setup(cfg if config is None else config, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="smca")
    for handler in logging.getLogger("smca").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is not sys.stdout:
            atexit.register(_close, handler.stream)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_in_one_line)
    if args.eval_only:
        model = trainer.build_model(cfg)
        SMCACheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
        model.class_names = getattr(model, "class_names", None) or trained_names(cfg)
        trainer.test(cfg, model)
        logger.info("results of %s", cfg.MODEL.WEIGHTS)
        return
    try:
        training = trainer(cfg)
        training.resume_or_load(resume=args.resume)
    except Exception:
        if anothers is not None:  # a run that is refused leaves another's folder as it was
            file.write_bytes(anothers)
        raise
    training.train()


def _close(log: TextIO) -> None:
    """Close a log file, even if a full disk refuses its last lines; Detectron2 would raise."""
    with contextlib.suppress(OSError):
        log.close()


def _in_one_line(record: logging.LogRecord) -> bool:
    """Shorten what Detectron2 logs when training fails, if one line explains the error."""
    error = record.exc_info and record.exc_info[1]
    if error and (explanation := explain(error)):
        record.msg, record.exc_info = f"{record.msg} {explanation[1]}", None
    return True
