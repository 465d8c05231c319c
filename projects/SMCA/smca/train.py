"""The training program, ``python -m smca.train``: the same as ``train_net.py`` of the repository.

Examples:
    python -m smca.train --config quickstart
    python -m smca.train --config-file configs/smca_R50_108ep.yaml --num-gpus 8
    torchrun --nproc-per-node 8 -m smca.train --config smca_R50_108ep
"""

import argparse
import io
import os
import sys
import warnings

from .engine.arguments import argument_parser
from .engine.guard import guarded
from .hosts import choose_engine, detectron2_host

# Detectron2 and fvcore decorate with torch.jit, which today's torch announces to remove. Here, and
# not in main, for the processes that are spawned too: they begin by importing this module.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
# Names of classes and files that a terminal cannot show are not worth an error.
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")


def main() -> int:
    """Run the command line; returns the exit code.

    0, 2 for what the user can mend, 3 for a loss that is not finite, 128 + a signal's number.
    """
    parser = argument_parser(
        "Train or evaluate a detector, on Detectron2 where it is installed, else on PyPI packages "
        "alone."
    )
    return guarded(_run, parser.parse_args())


def _run(args: argparse.Namespace) -> int:
    engine, reason = choose_engine(args.engine)
    if os.getenv("RANK", "0") == "0":  # of torchrun's processes, the first says it
        print(reason, flush=True)
    if engine == "detectron2":
        return detectron2_host("launch").run(args)
    from .native.launch import run

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
