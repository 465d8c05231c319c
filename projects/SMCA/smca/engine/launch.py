"""Start the processes that train together, the workers, or join those that torchrun has started."""

import argparse
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..checkpoints.checkpointer import LAST
from ..distributed import all_gather, end_with_parent, synchronize
from ..errors import CheckpointError, ConfigError, WorkerError
from ..imports import import_all
from .guard import guarded
from .prepare import prepare

# Workers wait so long for one that evaluates or writes files; NCCL's own limit is shorter.
_TIMEOUT = timedelta(minutes=30)
# After torchrun is gone, a worker has so many seconds to save a checkpoint and end.
_AFTER_LAUNCHER = 30.0
# The variables that torchrun sets.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Worker(NamedTuple):
    """One of the processes that train together: its number and their count, also on its machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def start_processes(
    main: Callable[..., None],
    count: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
) -> None:
    """Start ``count`` workers on this machine: ``detectron2.engine.launch`` without Detectron2."""
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{get_free_port()}"
    workers = [
        Worker(machine_rank * count + place, num_machines * count, place, count)
        for place in range(count)
    ]
    torch.multiprocessing.start_processes(
        _join_and_run, args=(workers, dist_url, main, args), nprocs=count
    )


def _join_and_run(
    place: int, workers: Sequence[Worker], url: str, main: Callable[..., None], args: tuple
) -> None:
    _join(workers[place], url, cuda=torch.cuda.is_available())
    main(*args)


def _join(worker: Worker, url: str, *, cuda: bool) -> None:
    if cuda:
        torch.cuda.set_device(worker.local_rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=url,
        rank=worker.rank,
        world_size=worker.world_size,
        timeout=_TIMEOUT,
    )


def launch(
    main: Callable[..., None],
    cfg: CfgNode,
    args: argparse.Namespace,
    *,
    start: Callable[..., None] = start_processes,
) -> int:
    """Run ``main(cfg, args)`` in all workers of this machine and return the exit code.

    Where torchrun has started this process, it is one of the workers. A single worker is this
    process; several are started by ``start``, for which ``main`` has to be picklable.

    Raises:
        ConfigError: flags or variables that contradict each other, too few GPUs, or a config that
            :func:`~smca.engine.prepare.prepare` refuses.
        CheckpointError: the machines would resume from different checkpoints.
    """
    if worker := torchrun_worker(args):
        _run(main, _join_torchrun(worker, cfg, args), args)
        return 0
    count, machines = args.num_gpus or 1, args.num_machines or 1
    rank = args.machine_rank or 0
    if not 0 <= rank < machines:
        raise ConfigError(
            f"--machine-rank is {args.machine_rank}; the machines are 0 to {machines - 1}"
        )
    if args.dist_url == "auto" and machines > 1:
        raise ConfigError("--dist-url must be tcp://host:port of machine 0 for many machines")
    cuda = _require_gpus(cfg, count)
    cfg = prepare(cfg, count * machines, args)
    if count * machines == 1:
        _run(main, cfg, args)
        return 0
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # workers that see a GPU would meet on it
        share = max(1, (os.cpu_count() or 1) // count)
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        with _signals_to_children():
            start(_guarded_run, count, machines, rank, args.dist_url, args=(main, cfg, args))
    except ProcessExitedException as end:
        if end.exit_code > 0:  # that worker has said why
            return end.exit_code
        worker = f"worker {rank * count + end.error_index} of {count * machines}"
        name = signal.Signals(-end.exit_code).name
        message = f"{WorkerError.__name__}: {worker} was ended by {name}"
        if name == "SIGKILL":
            message += ", most likely because the machine has run out of memory"
        if not args.eval_only:
            message += "; --resume goes on from the last checkpoint"
        print(message, file=sys.stderr, flush=True)
        return 128 - end.exit_code
    except ProcessRaisedException as error:
        print(error.msg.strip(), file=sys.stderr, flush=True)
        return 1
    return 0


def _guarded_run(main: Callable[..., None], cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run a started worker; it ends with the exit code that :func:`guarded` gives."""
    import_all(args.imports)
    sys.exit(guarded(_run, main, cfg, args))


def _run(main: Callable[..., None], cfg: CfgNode, args: argparse.Namespace) -> None:
    if args.resume:
        _require_one_checkpoint(cfg)
    # The garbage collector writes to every object that it visits. Loader processes share the
    # pages of the 100 MB of imported modules until then.
    gc.freeze()
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    main(cfg, args)
    if dist.is_initialized():  # after an error this would wait for the other workers
        dist.destroy_process_group()


def _join_torchrun(worker: Worker, cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Join the other workers of torchrun and return the config that is prepared."""
    if dist.is_torchelastic_launched():
        # Without its launcher this worker would train on beside the run that is started next.
        end_with_parent(grace=_AFTER_LAUNCHER)
    _join(worker, "env://", cuda=_require_gpus(cfg, worker.local_world_size))
    # The first worker of a machine fetches and draws the files that the others then find.
    if worker.local_rank > 0:
        synchronize()
    cfg = prepare(cfg, worker.world_size, args)
    if worker.local_rank == 0:
        synchronize()
    return cfg


def torchrun_worker(args: argparse.Namespace) -> Worker | None:
    """Return the worker that torchrun's variables make this process, or None without them.

    Raises:
        ConfigError: a flag contradicts torchrun, or some of the variables are missing.
    """
    if "LOCAL_RANK" not in os.environ:
        return None
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ConfigError(
            f"LOCAL_RANK is set, but not {', '.join(missing)}; start with torchrun, which sets "
            "them all, or unset LOCAL_RANK"
        )
    rank, total, local_rank, count = (int(os.environ[name]) for name in _VARIABLES[:4])
    if total % count:
        raise ConfigError(f"--nproc-per-node is {count} here; it must be the same on all machines")
    found = {"num_gpus": count, "num_machines": total // count, "machine_rank": rank // count}
    for name, number in found.items():
        if getattr(args, name) not in (None, number):
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}, but torchrun says {number}; "
                "leave it out, torchrun's own flags decide"
            )
    if args.dist_url != "auto":
        raise ConfigError("--dist-url: leave it out, torchrun's --rdzv-endpoint decides")
    return Worker(rank, total, local_rank, count)


def _require_gpus(cfg: CfgNode, count: int) -> bool:
    """Return whether each worker has a GPU; without any GPU they share the CPU.

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


def _require_one_checkpoint(cfg: CfgNode) -> None:
    """Check that all machines resume from the same checkpoint."""
    path = Path(cfg.OUTPUT_DIR, LAST)
    name = path.read_text("utf-8", "replace").strip() if path.is_file() else None
    names = set(all_gather(name))
    if len(names) > 1:
        raise CheckpointError(
            f"--resume: the machines disagree on {path} ({', '.join(map(str, names))}); "
            "OUTPUT_DIR must be a folder that all of them see"
        )


@contextlib.contextmanager
def _signals_to_children() -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the workers and wait for them, instead of ending at once."""

    def forward(number: int, _frame) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)

    signals = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():  # it alone has handlers
        signals = ()
    previous = {number: signal.signal(number, forward) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
