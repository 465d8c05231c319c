"""The config keys that a model is built from: ``KEY=Key(default, meaning, rule)``."""

from .rules import (
    BELOW_ONE,
    BLOCKS,
    DEVIATIONS,
    FINITE,
    FRACTION,
    NAMES,
    NOT_NEGATIVE,
    ODD,
    PATH,
    POSITIVE_OR_INFINITE,
    THREE_NUMBERS,
    Key,
    Own,
    at_least,
    group,
    one_of,
)

# MODEL.META_ARCHITECTURE of the project's own models.
OWN_MODELS = ("SMCA", "TSPFCOS")
# How many channels predict the precision of a Gaussian, by MODEL.SMCA.MODULATION.SCALE.
PRECISION_CHANNELS = {"fixed": 0, "single": 1, "independent": 2, "oriented": 3}

# Headings in docs/CONFIG.md.
ABOUT = {
    "MODEL.TIMM": "The TimmBackbone (MODEL.BACKBONE.NAME).",
    "MODEL.SMCA.MODULATION": "The Gaussian of the co-attention (Eqs. 3-6).",
    "MODEL.SMCA.CONDITIONAL": "Conditional DETR's decoder.",
    "MODEL.SMCA.DEFORMABLE": "Deformable DETR's encoder and decoder.",
    "MODEL.SMCA.UP_DETR": "UP-DETR's pre-training: the UPDETRDecoder (docs/PRETRAINING.md).",
    "MODEL.SMCA.TSP": "TSP-FCOS and TSP-RCNN (docs/TSP.md).",
    "MODEL.SMCA.MATCHER": "The costs by which the Hungarian matcher gives each object a query.",
}

MODEL_KEYS: dict[str, Key] = {}
MODEL_KEYS |= group(
    "MODEL",
    META_ARCHITECTURE=Key(
        "GeneralizedRCNN", "'SMCA', 'TSPFCOS', or with Detectron2 any of its models."
    ),
    WEIGHTS=Key(
        "",
        "Starting weights: a checkpoint of this project, a ResNet of torchvision (.pth) or of "
        "Detectron2's model zoo (.pkl, also MSRA's) or the timm model. A path, or an address "
        "(https://, detectron2://) that is fetched once.",
        PATH,
    ),
    PIXEL_MEAN=Key(
        [103.53, 116.28, 123.675],
        "Mean of each channel, in the order of INPUT.FORMAT, for pixels from 0 to 255.",
        THREE_NUMBERS,
    ),
    PIXEL_STD=Key([1.0, 1.0, 1.0], "Standard deviation of each channel.", DEVIATIONS),
)
MODEL_KEYS |= group(
    "MODEL.BACKBONE",
    NAME=Key(
        "build_resnet_backbone",
        "Name in SMCA_BACKBONE_REGISTRY, or with Detectron2 one of its backbones. "
        "'build_smca_resnet_backbone' is the ResNet; so is Detectron2's 'build_resnet_backbone' in "
        "the native host, because it has the same parameters and maps.",
    ),
    FREEZE_AT=Key(
        2, "Stages that are not trained: 1 is the stem, 2 the stem and res2, ...", one_of(*range(6))
    ),
    FREEZE_RANDOM=Own(
        False, "Train although frozen weights are random: only for tests and measurements."
    ),
)
MODEL_KEYS |= group(
    "MODEL.RESNETS",
    DEPTH=Key(50, "Layers: 10 (one basic block a stage), 18, 34, 50, 101 or 152."),
    NORM=Key("FrozenBN", "Normalisation: 'FrozenBN', 'BN', 'SyncBN', 'GN' or '' (none)."),
    NUM_GROUPS=Key(1, "Groups of a bottleneck's 3x3 convolution (ResNeXt).", at_least(1)),
    WIDTH_PER_GROUP=Key(64, "Channels of each of these groups in res2.", at_least(1)),
    STRIDE_IN_1X1=Key(
        True, "Bottlenecks stride in their first 1x1 convolution, else in the 3x3 (torchvision)."
    ),
    RES5_DILATION=Key(1, "2 keeps res5 at stride 16 (DC5).", one_of(1, 2)),
    RES2_OUT_CHANNELS=Key(256, "Channels of res2, doubled in each later stage.", at_least(1)),
    DEFORM_ON_PER_STAGE=Key(
        [False] * 4, "Deformable convolutions: only in Detectron2's build_resnet_backbone."
    ),
    STEM_OUT_CHANNELS=Key(64, "Channels of the stem.", at_least(1)),
    STEM_TYPE=Own(
        "basic", "'basic' (7x7 convolution and max-pooling) or 'conv' (two 3x3 convolutions)."
    ),
)
MODEL_KEYS |= group(
    "MODEL.TIMM",
    NAME=Own("", "Name of the model in timm, such as 'swin_tiny_patch4_window7_224'."),
    FROZEN_BN=Own(True, "Batch norms keep their statistics and weights."),
)
MODEL_KEYS |= group(
    "MODEL.SMCA",
    NUM_CLASSES=Own(80, "Number of object classes; 0: as many as the data has.", at_least(0)),
    NUM_QUERIES=Own(300, "Number of object queries.", at_least(1)),
    QUERY_GROUPS=Own(
        1,
        "Groups of NUM_QUERIES queries in training, each matched to all objects; inference uses "
        "the first (docs/BEYOND.md).",
        at_least(1),
    ),
    TWO_STAGE=Own(
        False,
        "Queries start from the boxes of the tokens with the highest scores (docs/BEYOND.md).",
    ),
    HIDDEN_DIM=Own(256, "Channels of tokens and queries, a multiple of 4 and NHEADS.", at_least(4)),
    NHEADS=Own(8, "Number of attention heads.", at_least(1)),
    DIM_FEEDFORWARD=Own(1024, "Width of the FFNs; 2048 in the single-scale model.", at_least(1)),
    DROPOUT=Own(0.1, "Dropout in the blocks of the encoder and the decoder.", BELOW_ONE),
    ATTENTION_DROPOUT=Own(
        0.1, "Dropout of attention weights. Attention is fused on a CPU only without it.", BELOW_ONE
    ),
    PRE_NORM=Own(
        False,
        "Blocks norm their inputs, as UP-DETR's and TSP's do, instead of their sums; with the "
        "IntraMultiEncoder and DETR's decoder.",
    ),
    COMPILE=Own(
        False,
        "Compile the encoder's blocks and the decoder's layers (torch.compile) in the first "
        "iteration, for images of all sizes. It gains nothing on a CPU (docs/PERFORMANCE.md).",
    ),
    IN_FEATURES=Own(["res4", "res5"], "Backbone maps of the neck, from fine to coarse.", NAMES),
    NUM_SCALES=Own(
        3, "Scales; those beyond IN_FEATURES are strided convolutions of the last map.", at_least(1)
    ),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.NECK",
    NORM=Own("", "'GN': a group norm after each projection; '': none.", one_of("", "GN")),
    POSITION_OFFSET=Own(
        0.0, "Where a cell has its sine position: 0.0 at its far side, -0.5 in its middle.", FINITE
    ),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.ENCODER",
    NAME=Own("IntraMultiEncoder", "Name in SMCA_ENCODER_REGISTRY."),
    BLOCKS=Own(
        ["intra", "intra", "multi", "intra", "intra"],
        "Blocks of the IntraMultiEncoder: 'intra' attends inside each scale, 'multi' over all.",
        BLOCKS,
    ),
    SHARE_ATTENTION=Own(True, "All scales share their attention weights (Table 3)."),
    SHARE_FFN=Own(True, "All scales share their FFN (Table 3)."),
    RECOMPUTE=Own(
        "none",
        "Blocks of the IntraMultiEncoder that compute their activations again in the backward "
        "pass instead of keeping them, which takes less memory and more time.",
        one_of("none", "multi", "all"),
    ),
    NUM_LAYERS=Own(6, "Number of blocks of the other encoders.", at_least(0)),
    KERNEL_SIZE=Own(5, "Kernel size of the DepthwiseEncoder's convolutions.", ODD),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.DECODER",
    NAME=Own("SMCADecoder", "Name in SMCA_DECODER_REGISTRY."),
    NUM_LAYERS=Own(6, "Layers of self-attention, co-attention and FFN.", at_least(1)),
    SHARE_KEY_VALUE=Own(True, "All scales share one key and one value projection."),
    SCALE_SELECTION=Own(
        True, "Weight each query's scales by scale-selection attention (Eqs. 7-9), or sum them."
    ),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.MODULATION",
    HEADS=Own(
        "multi",
        "'multi': each head has its own centre offset and scales (Eq. 6). 'shared': all heads "
        "have one Gaussian, at the centre (Eq. 5).",
        one_of("multi", "shared"),
    ),
    SCALE=Own(
        "independent",
        "Scales of the Gaussian: fixed, one for x and y, one each, or a full 2x2 precision.",
        one_of(*PRECISION_CHANNELS),
    ),
    BETA=Own(8.0, "Bandwidth (Eq. 3): the larger, the wider the Gaussian.", POSITIVE_OR_INFINITE),
    CENTER_LAYERS=Own(
        3, "Layers of the MLP that predicts the centre: 3 as released, 2 in the paper.", at_least(1)
    ),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.CONDITIONAL",
    SPATIAL_QUERY=Own(
        "CSQ",
        "How spatial queries are formed: 'CSQ' as proposed, the others as in its Table 3.",
        one_of("CSQ", "CSQ-C", "CSQ-T", "CSQ-P", "CSQ-I"),
    ),
    REFERENCE=Own(
        "query",
        "Reference points are predicted from the query embedding, or are parameters themselves.",
        one_of("query", "parameter"),
    ),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.DEFORMABLE",
    NUM_POINTS=Own(4, "Number of points that a head samples in each scale.", at_least(1)),
    REFINE=Own(False, "Each decoder layer starts from the boxes of the layer before."),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.UP_DETR",
    NUM_PATCHES=Own(10, "Patches an image; NUM_QUERIES is a multiple.", at_least(1)),
    FEATURE_DIM=Own(2048, "Channels of the last of IN_FEATURES.", at_least(1)),
    PATCH_SIZE=Own(128, "Sides that patches are resized to, in pixels.", at_least(1)),
    PATCH_DROPOUT=Own(0.1, "How often a query does not see its patch.", BELOW_ONE),
    SHUFFLE=Own(False, "The embeddings of queries change places in each iteration."),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.TSP",
    NUM_FEATURES=Own(700, "Places of the maps that TSP-FCOS encodes: the best ones.", at_least(1)),
    LEAST_KEPT=Own(
        0.7, "Least part of the inputs that is kept in training; drawn between it and 1.", FRACTION
    ),
    PYRAMID_DIM=Own(256, "Channels of TSP-FCOS's pyramid and towers.", at_least(4)),
    NMS_THRESH=Own(
        0.6,
        "IoU from which TSP-FCOS leaves out boxes beside a better one of their class; 1.0: no "
        "NMS. TSP-RCNN has MODEL.ROI_HEADS.NMS_THRESH_TEST.",
        FRACTION,
    ),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.DENOISING",
    ENABLED=Own(False, "Train further queries that are objects with noise (docs/BEYOND.md)."),
    KIND=Own(
        "contrastive",
        "'classic': each object once a set (DN-DETR); 'contrastive': also farther away, where it "
        "is background (DINO).",
        one_of("classic", "contrastive"),
    ),
    SETS=Own(5, "Number of sets, if classic.", at_least(1)),
    NUMBER=Own(100, "Objects over all sets, at least one set, if contrastive.", at_least(1)),
    LABEL_NOISE=Own(
        0.5,
        "Part of the labels that are drawn anew, 0.2 in DN-DETR; contrastive halves it.",
        FRACTION,
    ),
    BOX_NOISE=Own(0.4, "How far boxes move, in halves of their sides.", FRACTION),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.ONE_TO_MANY",
    ENABLED=Own(
        False, "Teach several queries an object before they see each other (docs/BEYOND.md)."
    ),
    NUMBER=Own(6, "Queries an object, at the most.", at_least(1)),
    THRESHOLD=Own(0.4, "Queries of a lower quality are left out.", FRACTION),
    IOU_WEIGHT=Own(0.7, "Weight of the IoU in the quality; the score has the rest.", FRACTION),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.LOSS",
    CLASSIFICATION=Own(
        "focal",
        "Sigmoid focal loss, DETR's softmax cross-entropy with a no-object class, or losses that "
        "know the IoU of a query's box: DEIM's MAL or Align-DETR's IA-BCE, with CLASS_WEIGHT 1.0.",
        one_of("focal", "softmax", "mal", "ia_bce"),
    ),
    CLASS_WEIGHT=Own(2.0, "Weight of the classification loss.", NOT_NEGATIVE),
    L1_WEIGHT=Own(5.0, "Weight of the boxes' L1 distance in fractions of the image.", NOT_NEGATIVE),
    GIOU_WEIGHT=Own(2.0, "Weight of the boxes' 1 - GIoU.", NOT_NEGATIVE),
    FOCAL_ALPHA=Own(0.25, "Weight of objects; background has the rest.", FRACTION),
    FOCAL_GAMMA=Own(2.0, "The larger, the less easy queries count.", NOT_NEGATIVE),
    FEATURE_WEIGHT=Own(
        1.0, "Weight of the distance of patches' features in UP-DETR's pre-training.", NOT_NEGATIVE
    ),
    IOU_GAMMA=Own(
        1.5, "Power of the IoU in MAL; the larger, the less poor boxes score.", NOT_NEGATIVE
    ),
    NO_OBJECT_WEIGHT=Own(0.1, "Weight of the no-object class in the softmax loss.", NOT_NEGATIVE),
    AUXILIARY=Own(True, "Supervise the output of every decoder layer, not only of the last."),
)
MODEL_KEYS |= group(
    "MODEL.SMCA.MATCHER",
    CLASS_COST=Own(2.0, "Weight of the classification cost.", NOT_NEGATIVE),
    L1_COST=Own(5.0, "Weight of the boxes' L1 distance in fractions of the image.", NOT_NEGATIVE),
    GIOU_COST=Own(2.0, "Weight of the boxes' negative GIoU.", NOT_NEGATIVE),
)
