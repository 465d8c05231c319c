"""Starting a run on Detectron2: the config, one or many processes, training or evaluation."""

from __future__ import annotations

import argparse
import sys

import torch.distributed as dist
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup, launch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import ConfigError, add_smca_config, load_cfg
from ..launching import guarded, prepare, run_processes
from .checkpointer import SMCACheckpointer
from .datasets import register_datasets
from .trainer import Trainer


def run(args: argparse.Namespace) -> int:
    """Run what :func:`smca.cli.argument_parser` read; returns the exit code.

    Raises:
        ConfigError, DatasetError, CheckpointError, FileNotFoundError: what a user can mend.
        FloatingPointError: a loss that is not finite.
    """
    cfg = get_cfg()
    add_smca_config(cfg)
    cfg = prepare(load_cfg(cfg, args.config_file, args.opts), args.num_gpus * args.num_machines)
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; it must be 'SMCA' or one "
            "of Detectron2's"
        )
    for key in ("AUG", "PRECISE_BN"):
        if cfg.TEST[key].ENABLED:
            raise ConfigError(
                f"TEST.{key}.ENABLED is True; it must be False, SMCA has no use of it"
            )
    register_datasets(cfg)
    if args.num_gpus * args.num_machines == 1:
        return _main(cfg, args)

    def start() -> None:
        launch(
            _worker,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, args),
        )

    return run_processes(start, cfg, args)


def _worker(cfg: CfgNode, args: argparse.Namespace) -> None:
    code = guarded(_main, cfg, args)
    if code == 0:
        dist.destroy_process_group()
    sys.exit(code)


def _main(cfg: CfgNode, args: argparse.Namespace) -> int:
    if args.eval_only:
        # Detectron2's set-up would replace the run's config.yaml by that of the evaluation.
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fvcore")
    else:
        default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="smca")
    register_datasets(cfg)
    if args.eval_only:
        _evaluate(cfg, resume=args.resume)
        return 0
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return 0


def _evaluate(cfg: CfgNode, *, resume: bool) -> dict:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint in OUTPUT_DIR.

    Raises:
        ConfigError: there is nothing to evaluate, or nothing to evaluate on.
        CheckpointError: the file does not fit the model.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name the datasets to evaluate on")
    model = Trainer.build_model(cfg)
    checkpointer = SMCACheckpointer(model, cfg.OUTPUT_DIR, save_to_disk=False)
    checkpointer.load_to_evaluate(cfg.MODEL.WEIGHTS, resume=resume)
    return Trainer.test(cfg, model)
