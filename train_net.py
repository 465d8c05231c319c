#!/usr/bin/env python3
"""Train or evaluate a detector, on Detectron2 where it is installed, else on PyPI packages alone.

Example:
    python train_net.py --config-file configs/smca_R50_108ep.yaml --num-gpus 8
"""

import sys

from smca.checkpoints import CheckpointError
from smca.cli import argument_parser, choose_engine
from smca.config import ConfigError
from smca.data.coco import DatasetError


def main() -> int:
    args = argument_parser(__doc__.splitlines()[0]).parse_args()
    engine, reason = choose_engine(args.engine)
    print(reason)
    if engine == "detectron2":
        from smca.d2.launch import run
    else:
        from smca.native.launch import run
    try:
        return run(args)
    except (ConfigError, DatasetError, CheckpointError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
