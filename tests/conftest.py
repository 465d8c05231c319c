"""What tests of all parts share: small configs and threads that do not fight for cores."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# Programs that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# A detector small enough to train for a few iterations in a test.
TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.SMCA.HIDDEN_DIM", 32, "MODEL.SMCA.NHEADS", 4, "MODEL.SMCA.NUM_QUERIES", 10),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 32, "MODEL.SMCA.ENCODER.BLOCKS", ["intra", "multi"]),
    *("MODEL.SMCA.DECODER.NUM_LAYERS", 2),
]


@pytest.fixture
def config():
    """``config("smca_R50_50ep", "KEY", value, ...)``: a config of configs/ with changes."""
    import smca
    from smca.config import load_cfg

    def load(name: str, *opts):
        return load_cfg(smca.get_cfg(), str(ROOT / "configs" / f"{name}.yaml"), list(opts))

    return load


@pytest.fixture
def tiny_config(config):
    """The quickstart's config with a detector of a few thousand parameters, and changes."""
    return lambda *opts: config("quickstart", *TINY, *opts)
