"""Starting a run: the config, one or many processes, training or evaluation."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fvcore.common.config import CfgNode

from ..config import get_cfg, load_cfg
from ..launching import guarded, prepare, run_processes
from ..validation import validate_model
from .trainer import Trainer, evaluate_only

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Run what :func:`smca.cli.argument_parser` read; returns the exit code.

    Raises:
        ConfigError, DatasetError, CheckpointError, FileNotFoundError: what a user can mend.
        FloatingPointError: a loss that is not finite.
    """
    world_size = args.num_gpus * args.num_machines
    cfg = load_cfg(get_cfg(), args.config_file, args.opts)
    validate_model(cfg)  # those of Detectron2 only run there
    cfg = prepare(cfg, world_size)
    if world_size == 1:
        return _main(0, cfg, args)

    def start() -> None:
        url = f"tcp://127.0.0.1:{_free_port()}" if args.dist_url == "auto" else args.dist_url
        mp.start_processes(_worker, (cfg, args, url, world_size), nprocs=args.num_gpus)

    return run_processes(start, cfg, args)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _worker(
    local_rank: int, cfg: CfgNode, args: argparse.Namespace, url: str, world_size: int
) -> None:
    rank = args.machine_rank * args.num_gpus + local_rank
    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=url, world_size=world_size, rank=rank
    )
    code = guarded(_main, rank, cfg, args)
    if code == 0:
        dist.destroy_process_group()
    sys.exit(code)


def _main(rank: int, cfg: CfgNode, args: argparse.Namespace) -> int:
    _setup_logging(cfg.OUTPUT_DIR if rank == 0 else None)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    if args.eval_only:
        evaluate_only(cfg, resume=args.resume)
    else:
        if rank == 0:
            with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as file:
                file.write(cfg.dump())
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
    return 0


def _setup_logging(output_dir: str | None) -> None:
    """Messages of the project and fvcore to the terminal and OUTPUT_DIR/log.txt (first worker)."""
    # fvcore decorates with torch.jit, which today's torch announces to remove.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
    handlers: list[logging.Handler] = []
    if output_dir is not None:
        handlers = [
            logging.StreamHandler(sys.stdout),
            logging.FileHandler(os.path.join(output_dir, "log.txt")),
        ]
    form = logging.Formatter("[%(asctime)s %(name)s] %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    for name in ("smca", "fvcore"):
        package = logging.getLogger(name)
        package.setLevel(logging.INFO)
        package.propagate = False
        package.handlers = handlers
    for handler in handlers:
        handler.setFormatter(form)
