"""DETR-R50 as the SMCA paper's baseline: 300 queries and focal loss, 34.8 AP in the paper."""

from smca.modeling.decoder import DETRDecoder

from ..smca_single_scale_R50_50ep import (  # noqa: F401
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.decoder._target_ = DETRDecoder
del model.decoder.num_scales
train.output_dir = "output/detr_focal_R50_50ep"
