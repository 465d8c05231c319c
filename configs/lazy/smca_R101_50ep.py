"""SMCA-R101: Table 4, 44.4 AP in the paper."""

from .smca_R50_50ep import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.backbone.depth = 101
train.init_checkpoint = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
train.output_dir = "output/smca_R101_50ep"
