"""The training program, ``python -m smca.train``: the same as ``train_net.py`` of the repository.

Examples:
    python -m smca.train --config quickstart
    python -m smca.train --config-file configs/smca_R50_108ep.yaml --num-gpus 8
    torchrun --nproc-per-node 8 -m smca.train --config smca_R50_108ep
"""

import argparse
import os
import sys
from collections.abc import Sequence

from . import hosts
from .engine.arguments import argument_parser
from .engine.guard import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, or ``argv`` in its place, and return the exit code.

    It is 2 for an error that the user can mend, 3 for a loss that is not finite, and 128 + the
    number of a signal that stopped the run.
    """
    parser = argument_parser(
        "Train or evaluate a detector, on Detectron2 where it is installed, else on PyPI packages "
        "alone."
    )
    return guarded(lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    engine, reason = hosts.choose_engine(args.engine)
    if os.getenv("RANK", "0") == "0":  # torchrun starts many
        print(reason, flush=True)
    return hosts.load(engine, "launch").run(args)


if __name__ == "__main__":
    sys.exit(main())
