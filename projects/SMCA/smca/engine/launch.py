"""The processes that train together, the workers: started here, or each of them by torchrun."""

from __future__ import annotations

import argparse
import gc
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode

from ..distributed import end_with_parent
from ..errors import CheckpointError, ConfigError
from .prepare import prepare
from .processes import run_together

# How long workers wait for one that evaluates or makes files; NCCL's own limit is shorter.
_TIMEOUT = timedelta(minutes=30)
# Seconds that they have to save a checkpoint and end once torchrun is gone.
_AFTER_LAUNCHER = 30.0
# What torchrun sets.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together.

    Attributes:
        rank, world_size: its number among all of them, and how many they are.
        local_rank, local_world_size: the same among those of its machine.
        url: where they meet, as ``torch.distributed.init_process_group`` takes it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    url: str | None = None


# What a worker does.
Main = Callable[[CfgNode, argparse.Namespace, Worker], None]


def run_workers(main: Main, cfg: CfgNode, args: argparse.Namespace) -> int:
    """Run ``main(cfg, args, worker)`` in all workers of this machine; returns the exit code.

    Where torchrun has started this process, it is one of them. Else they are started here, but a
    single one is this process. ``main`` gets the config as
    :func:`~smca.engine.prepare.prepare` leaves it, and workers joined in a process group.

    Args:
        main: a function that can be pickled.
        cfg: the merged configuration.
        args: what :func:`smca.engine.arguments.argument_parser` read.

    Raises:
        ConfigError: flags or variables that contradict each other, too few GPUs, or what
            :func:`~smca.engine.prepare.prepare` refuses.
        CheckpointError: machines that would resume from different checkpoints.
    """
    worker = torchrun_worker(args)
    if worker is not None:
        if dist.is_torchelastic_launched():
            # Else it would train on, beside the run that is started next.
            end_with_parent(grace=_AFTER_LAUNCHER)
        _work(worker, main, cfg, args, prepared=False)
        return 0
    count, machines = args.num_gpus or 1, args.num_machines or 1
    first = (args.machine_rank or 0) * count
    if not 0 <= first < count * machines:
        raise ConfigError(
            f"--machine-rank is {args.machine_rank}; the machines are 0 to {machines - 1}"
        )
    if args.dist_url == "auto" and machines > 1:
        raise ConfigError("--dist-url must be tcp://host:port of machine 0 for many machines")
    _require_gpus(cfg, count)
    cfg = prepare(cfg, count * machines, args)
    if count * machines == 1:
        _run(main, cfg, args, Worker())
        return 0
    url = f"tcp://127.0.0.1:{_free_port()}" if args.dist_url == "auto" else args.dist_url
    workers = [Worker(first + i, count * machines, i, count, url) for i in range(count)]
    return _start(workers, main, cfg, args)


def torchrun_worker(args: argparse.Namespace) -> Worker | None:
    """The worker that this process is, by torchrun's variables; None where they are not set.

    Raises:
        ConfigError: a flag says otherwise, or some of the variables are missing.
    """
    if "LOCAL_RANK" not in os.environ:
        return None
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ConfigError(
            f"LOCAL_RANK is set, but not {', '.join(missing)}; start with torchrun, which sets "
            "them all, or unset LOCAL_RANK"
        )
    rank, world_size, local_rank, count = (int(os.environ[name]) for name in _VARIABLES[:4])
    if world_size % count:
        raise ConfigError(f"--nproc-per-node is {count} here; it must be the same on all machines")
    found = {"num_gpus": count, "num_machines": world_size // count, "machine_rank": rank // count}
    for name, number in found.items():
        if getattr(args, name) not in (None, number):
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}, but torchrun says {number}; "
                "leave it out, torchrun's own flags decide"
            )
    if args.dist_url != "auto":
        raise ConfigError("--dist-url: leave it out, torchrun's --rdzv-endpoint decides")
    return Worker(rank, world_size, local_rank, count, "env://")


def _work(
    worker: Worker, main: Main, cfg: CfgNode, args: argparse.Namespace, *, prepared: bool = True
) -> None:
    """Join the other workers and do what they do."""
    cuda = _require_gpus(cfg, worker.local_world_size)
    if cuda:
        torch.cuda.set_device(worker.local_rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=worker.url,
        rank=worker.rank,
        world_size=worker.world_size,
        timeout=_TIMEOUT,
    )
    if not prepared:
        # The first of a machine makes what all of them need, and says what cannot work.
        if worker.local_rank > 0:
            dist.barrier()
        cfg = prepare(cfg, worker.world_size, args)
        if worker.local_rank == 0:
            dist.barrier()
    if args.resume:
        _require_one_checkpoint(cfg, worker.world_size)
    _run(main, cfg, args, worker)
    # Not after an error, where it would wait for the others.
    dist.destroy_process_group()


def _run(main: Main, cfg: CfgNode, args: argparse.Namespace, worker: Worker) -> None:
    # A collection writes to all that it looks at: to 100 MB of imported modules, whose pages the
    # loader processes share until then.
    gc.freeze()
    main(cfg, args, worker)


def _require_gpus(cfg: CfgNode, count: int) -> bool:
    """Whether workers have a GPU each; they have the CPU where there is none.

    Raises:
        ConfigError: there are GPUs, but fewer than ``count`` workers.
    """
    if not cfg.MODEL.DEVICE.startswith("cuda") or not torch.cuda.is_available():
        return False
    if count > torch.cuda.device_count():
        raise ConfigError(
            f"there are {torch.cuda.device_count()} GPUs for {count} processes on this machine; "
            "lower --num-gpus (of torchrun: --nproc-per-node)"
        )
    return True


def _require_one_checkpoint(cfg: CfgNode, world_size: int) -> None:
    path = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    names: list[str | None] = [None] * world_size
    name = None
    if os.path.isfile(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
    dist.all_gather_object(names, name)
    if len(set(names)) > 1:
        raise CheckpointError(
            f"--resume: the machines disagree on {path} ({', '.join(map(str, set(names)))}); "
            "OUTPUT_DIR must be a folder that all of them see"
        )


def _start(workers: list[Worker], main: Main, cfg: CfgNode, args: argparse.Namespace) -> int:
    """Run the workers of this machine; returns the exit code."""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        # Each has its share of the cores.
        share = max(1, (os.cpu_count() or 1) // len(workers))
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
    names = [f"worker {worker.rank} of {worker.world_size}" for worker in workers]
    advice = "" if args.eval_only else "; --resume goes on from the last checkpoint"
    return run_together(
        _work, [(worker, main, cfg, args) for worker in workers], names, advice=advice
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
