"""A TSP-RCNN that is small enough for a test."""

from smca.config import load_cfg

CONFIG = "configs/baselines/tsp_rcnn_R50_36ep.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
    *("MODEL.SMCA.HIDDEN_DIM", 32, "MODEL.SMCA.NHEADS", 4, "MODEL.SMCA.DIM_FEEDFORWARD", 48),
    *("MODEL.SMCA.ENCODER.BLOCKS", ["intra", "intra"], "INPUT.MIN_SIZE_TEST", 64),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 40, "MODEL.RPN.POST_NMS_TOPK_TEST", 30),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32, "INPUT.MIN_SIZE_TRAIN", (64,)),
]


def small_config(*opts):
    """The config of the small model, with ``KEY, value, ...`` in turn."""
    from detectron2.config import get_cfg

    import smca.d2

    cfg = get_cfg()
    smca.d2.add_smca_config(cfg)
    return load_cfg(cfg, CONFIG, [*SMALL, *opts])
