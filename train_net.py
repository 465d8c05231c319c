#!/usr/bin/env python3
"""Train or evaluate a detector, on Detectron2 where it is installed, else on PyPI packages alone.

Example:
    python train_net.py --config-file configs/smca_R50_108ep.yaml --num-gpus 8
"""

import sys

from smca.train import main

if __name__ == "__main__":
    sys.exit(main())
