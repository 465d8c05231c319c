#!/usr/bin/env python3
"""Train or evaluate a detector, on Detectron2 where it is installed, else on PyPI packages alone.

Example:
    python train_net.py --config-file configs/smca_R50_108ep.yaml --num-gpus 8
"""

import sys
import warnings

from smca.cli import argument_parser, choose_engine
from smca.launching import guarded

# Detectron2 and fvcore decorate with torch.jit, which today's torch announces to remove. Here, and
# not in main, for the processes that are spawned too.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")


def main() -> int:
    args = argument_parser(__doc__.splitlines()[0]).parse_args()
    engine, reason = choose_engine(args.engine)
    print(reason, flush=True)
    if engine == "detectron2":
        from smca.d2.launch import run
    else:
        from smca.native.launch import run
    return guarded(run, args)


if __name__ == "__main__":
    sys.exit(main())
