"""SMCA-R50, with 11 groups of queries and in 12 epochs: docs/BEYOND.md."""

from ..common.schedule import step_once
from ..smca_R50_50ep import dataloader, model, optimizer, train  # noqa: F401

model.decoder.query_groups = 11
lr_multiplier = step_once(at=11, of=12)
train.max_iter = 87960
train.eval_period = 7330
train.output_dir = "output/group_smca_R50_12ep"
