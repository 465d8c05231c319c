"""SMCA with the depthwise bidirectional encoder that its authors released after the paper."""

from detectron2.config import LazyCall as L

from smca.modeling.depthwise import DepthwiseEncoder

from .smca_R50_50ep import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.backbone.out_features = ["res3", "res4", "res5"]
model.neck.in_channels = [512, 1024, 2048]
model.neck.in_strides = [8, 16, 32]
model.neck.num_scales = 4
model.encoder = L(DepthwiseEncoder)(
    num_layers=6,
    num_scales="${..neck.num_scales}",
    dim="${..neck.dim}",
    ffn_dim="${..decoder.ffn_dim}",
    kernel_size=5,
    dropout="${..decoder.dropout}",
)
model.max_detections = 500
train.output_dir = "output/smca_depthwise_R50_50ep"
