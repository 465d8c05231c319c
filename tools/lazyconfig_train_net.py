#!/usr/bin/env python3
"""Train or evaluate a detector of a LazyConfig, on Detectron2.

Example:
    python tools/lazyconfig_train_net.py --config-file configs/lazy/smca_R50_50ep.py --num-gpus 8
"""

import re
import sys
import warnings
from collections.abc import Sequence

from smca.engine.arguments import add_import, expand_home
from smca.engine.guard import guarded

# Detectron2 and fvcore decorate with torch.jit, which today's torch announces to remove. Here, and
# not in main, for the processes that are spawned too: they begin by importing this module.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")

_CHANGE = re.compile(r"[+~]*[a-z_][\w.\[\]]*=")  # path.key=value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    from detectron2.engine import default_argument_parser

    from smca.d2.lazy import run

    parser = default_argument_parser(
        "path.key=value after the flags changes the config: train.max_iter=10 optimizer.lr=2e-4"
    )
    parser.description = __doc__.splitlines()[0]
    # torchrun may have started this process; and each run meets at a port of its own.
    parser.set_defaults(num_gpus=None, num_machines=None, machine_rank=None, dist_url="auto")
    add_import(parser)
    words = [expand_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    # argparse would take a flag behind a change for another change.
    words = sorted(filter("--opts".__ne__, words), key=lambda word: bool(_CHANGE.match(word)))
    return guarded(lambda: run(parser.parse_args(words)))


if __name__ == "__main__":
    sys.exit(main())
