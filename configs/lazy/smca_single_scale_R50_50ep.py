"""SMCA without multi-scale features: Table 1, 41.0 AP in the paper."""

from .smca_R50_50ep import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.backbone.out_features = ["res5"]
model.neck.in_channels = [2048]
model.neck.in_strides = [32]
model.neck.num_scales = 1
model.encoder.blocks = ["intra"] * 6
model.decoder.ffn_dim = 2048
train.output_dir = "output/smca_single_scale_R50_50ep"
