"""The folder of the LazyConfigs, and changes that make the quickstart's tiny."""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "configs" / "lazy"
# What the tiny config_file of tests/conftest.py has.
TINY = """
model.backbone.depth=10 model.backbone.stem=basic model.backbone.norm=BN
model.backbone.out_features=[res4,res5] model.neck.in_channels=[32,64] model.neck.in_strides=[16,32]
model.backbone.stem_channels=8 model.backbone.res2_channels=8 model.neck.num_scales=3
model.neck.dim=32 model.decoder.num_heads=4 model.decoder.num_queries=10 model.decoder.ffn_dim=32
model.decoder.query_groups=2
model.encoder.blocks=[intra,multi] model.decoder.num_layers=2
train.max_iter=6 lr_multiplier.milestones=[4] lr_multiplier.num_updates=6
dataloader.train.total_batch_size=4 train.checkpointer.period=2 train.eval_period=0
""".split()  # noqa: SIM905
