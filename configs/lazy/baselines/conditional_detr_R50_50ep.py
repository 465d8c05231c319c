"""Conditional DETR-R50 (arXiv 2108.06152), 40.9 AP in its paper."""

from smca.modeling.conditional import ConditionalDecoder

from ..smca_single_scale_R50_50ep import (  # noqa: F401
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.decoder._target_ = ConditionalDecoder
del model.decoder.num_scales
# Boxes start at their reference points.
model.heads.zero_boxes = True
model.max_detections = 100
train.output_dir = "output/conditional_detr_R50_50ep"
