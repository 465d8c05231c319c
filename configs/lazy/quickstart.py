"""A small SMCA trained from scratch on drawn shapes, as ``configs/quickstart.yaml`` has it."""

from .common.schedule import step_once
from .smca_R50_50ep import dataloader, model, optimizer, train

model.backbone.depth = 18
model.backbone.norm = "GN"
model.backbone.freeze_at = 0
model.backbone.stem = "conv"
model.backbone.stem_channels = 32
model.backbone.res2_channels = 32
# One scale, of stride 8.
model.backbone.out_features = ["res3"]
model.neck.in_channels = [64]
model.neck.in_strides = [8]
model.neck.num_scales = 1
model.neck.dim = 128
model.encoder.blocks = ["intra"]
model.decoder.num_layers = 3
model.decoder.num_queries = 25
model.decoder.query_groups = 5
model.decoder.ffn_dim = 256
model.decoder.dropout = 0.0
model.decoder.attention_dropout = 0.0
model.heads.num_logits = 3
model.max_detections = 100

# In $DETECTRON2_DATASETS/shapes (default: datasets/shapes), and drawn where that does not exist.
dataloader.train.dataset.names = "shapes_train"
dataloader.train.dataset.filter_empty = False
dataloader.test.dataset.names = "shapes_val"
# No crop, and images of the size they have.
dataloader.train.mapper.augmentations.pop(1)
dataloader.train.mapper.augmentations[-1].short_edge_length = [0]
dataloader.test.mapper.augmentations[0].short_edge_length = 0
dataloader.train.total_batch_size = 8
dataloader.train.aspect_ratio_grouping = False
dataloader.train.num_workers = 1

optimizer.lr = 5e-4
optimizer.params.lr_factor_func.backbone = 1.0
lr_multiplier = step_once(at=1000, of=1200)

train.device = "cpu"
train.init_checkpoint = ""
train.max_iter = 1200
train.checkpointer.period = 300
train.eval_period = 300
train.output_dir = "output/quickstart"
