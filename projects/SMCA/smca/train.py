"""The training program, ``python -m smca.train``: the same as ``train_net.py`` of the repository.

Examples:
    python -m smca.train --config quickstart
    python -m smca.train --config-file configs/smca_R50_108ep.yaml --num-gpus 8
    torchrun --nproc-per-node 8 -m smca.train --config smca_R50_108ep
"""

import os
import sys
import warnings

from .cli import argument_parser, choose_engine
from .launching import guarded

# Detectron2 and fvcore decorate with torch.jit, which today's torch announces to remove. Here, and
# not in main, for the processes that are spawned too: they begin by importing this module.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")


def main() -> int:
    """Run the command line; returns the exit code.

    0, 2 for what the user can mend, 3 for a loss that is not finite, 128 + a signal's number.
    """
    args = argument_parser(
        "Train or evaluate a detector, on Detectron2 where it is installed, else on PyPI packages "
        "alone."
    ).parse_args()
    engine, reason = choose_engine(args.engine)
    if os.getenv("RANK", "0") == "0":  # of torchrun's processes, the first says it
        print(reason, flush=True)
    if engine == "detectron2":
        from .d2.launch import run
    else:
        from .native.launch import run
    return guarded(run, args)


if __name__ == "__main__":
    sys.exit(main())
