"""SMCA-R50, the full model: Table 1, 43.7 AP in the paper."""

from .common.data import dataloader  # noqa: F401
from .common.model import model  # noqa: F401
from .common.optim import optimizer  # noqa: F401
from .common.schedule import lr_multiplier_50ep as lr_multiplier  # noqa: F401
from .common.train import train

train.output_dir = "output/smca_R50_50ep"
