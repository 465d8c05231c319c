"""SMCA without multi-scale features, 108 epochs: Table 1, 42.7 AP in the paper."""

from .common.schedule import lr_multiplier_108ep as lr_multiplier  # noqa: F401
from .smca_single_scale_R50_50ep import dataloader, model, optimizer, train  # noqa: F401

train.max_iter = 791640
train.output_dir = "output/smca_single_scale_R50_108ep"
