"""SMCA-R50 with all that docs/BEYOND.md calls SMCA+, in 12 epochs."""

from detectron2.config import LazyCall as L

from smca.modeling import AnchoredSMCADecoder
from smca.modeling.denoising import Denoising
from smca.modeling.heads import DetectionHeads
from smca.modeling.proposals import Proposals

from ..common.schedule import step_once
from ..smca_R50_50ep import dataloader, model, optimizer, train  # noqa: F401

model.decoder._target_ = AnchoredSMCADecoder
model.decoder.denoising = L(Denoising)(num_classes="${...heads.num_logits}", dim="${...neck.dim}")
model.decoder.proposals = L(Proposals)(
    num_queries="${..num_queries}",
    dim="${...neck.dim}",
    heads=L(DetectionHeads)(
        dim="${....neck.dim}", num_logits="${....heads.num_logits}", zero_boxes=True
    ),
)
model.decoder.one_to_many = L(DetectionHeads)(
    dim="${...neck.dim}", num_logits="${...heads.num_logits}", zero_boxes=True
)
model.heads.zero_boxes = True
lr_multiplier = step_once(at=11, of=12)
train.max_iter = 87960
train.eval_period = 7330
train.output_dir = "output/smca_plus_R50_12ep"
