"""Every configuration key: its default, its meaning, what it may be.

Keys that Detectron2 has keep Detectron2's names and defaults; keys of our own live under
``MODEL.SMCA`` and a few single names beside Detectron2's (marked "ours"). :func:`add_smca_config`
adds ours to Detectron2's config; :func:`get_cfg` gives the whole config without Detectron2.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode as CN

from ..errors import ConfigError
from .yaml_files import read_config_file

logger = logging.getLogger(__name__)

PRECISION_CHANNELS = {"fixed": 0, "single": 1, "independent": 2, "oriented": 3}


def add_smca_config(cfg: CN) -> None:
    """Add the project's own keys to ``cfg`` (Detectron2's config or the one of :func:`get_cfg`)."""
    node = type(cfg)  # nodes of another class refuse to be merged with a file's
    smca = cfg.MODEL.SMCA = node()
    # Classes of objects. 0: as many as the data has.
    smca.NUM_CLASSES = 80
    smca.NUM_QUERIES = 300  # object queries
    # Channels of tokens and queries: a multiple of 4 and of NHEADS.
    smca.HIDDEN_DIM = 256
    smca.NHEADS = 8  # attention heads
    # FFN width of encoder and decoder: 1024 in the multi-scale model, 2048 in the single-scale one.
    smca.DIM_FEEDFORWARD = 1024
    smca.DROPOUT = 0.1  # dropout of the encoder's and decoder's blocks, in [0, 1)
    # Dropout on attention weights, in [0, 1). CPU kernels are fused only without it.
    smca.ATTENTION_DROPOUT = 0.1
    # Compile the encoder's blocks and the decoder's layers (torch.compile) in the first iteration,
    # for all sizes of images. On a CPU it gained nothing (docs/PERFORMANCE.md).
    smca.COMPILE = False
    # Backbone maps the neck projects, fine to coarse.
    smca.IN_FEATURES = ["res4", "res5"]
    # Scales in all; those beyond IN_FEATURES are 3x3 stride-2 convolutions of the last map.
    smca.NUM_SCALES = 3

    smca.NECK = node()
    # "GN": a group norm after each projection (Deformable DETR); "": none.
    smca.NECK.NORM = ""
    # Where in a cell its sine position is taken: 0.0 at its far side, -0.5 in the middle.
    smca.NECK.POSITION_OFFSET = 0.0

    smca.ENCODER = node()
    # A name of SMCA_ENCODER_REGISTRY: IntraMultiEncoder, DepthwiseEncoder or DeformableEncoder.
    smca.ENCODER.NAME = "IntraMultiEncoder"
    # Of the IntraMultiEncoder, one entry a block: "intra" attends inside each scale, "multi" over
    # the tokens of all scales.
    smca.ENCODER.BLOCKS = ["intra", "intra", "multi", "intra", "intra"]
    # One set of weights for all scales, or one a scale (Table 3).
    smca.ENCODER.SHARE_ATTENTION = True
    smca.ENCODER.SHARE_FFN = True  # as SHARE_ATTENTION
    # Of the IntraMultiEncoder: "multi" or "all" blocks keep no activations in training and compute
    # them again in the backward pass, which takes less memory and more time; or "none".
    smca.ENCODER.RECOMPUTE = "none"
    # Blocks of the other two encoders.
    smca.ENCODER.NUM_LAYERS = 6
    # Of the DepthwiseEncoder's convolutions; odd.
    smca.ENCODER.KERNEL_SIZE = 5

    smca.DECODER = node()
    # A name of SMCA_DECODER_REGISTRY: SMCADecoder, DETRDecoder, ConditionalDecoder or
    # DeformableDecoder.
    smca.DECODER.NAME = "SMCADecoder"
    smca.DECODER.NUM_LAYERS = 6  # each with self-attention, co-attention and FFN
    # One key and value projection for all scales, or one a scale.
    smca.DECODER.SHARE_KEY_VALUE = True
    # Weight the scales of each query by scale-selection attention (Eqs. 7-9), or sum them.
    smca.DECODER.SCALE_SELECTION = True

    # The Gaussian of the co-attention (Eqs. 3-6).
    smca.MODULATION = node()
    # "multi": centre offsets and scales of its own for each head (Eq. 6).
    # "shared": one Gaussian for all heads, at the centre (Eq. 5).
    smca.MODULATION.HEADS = "multi"
    # "fixed", "single", "independent" (x and y) or "oriented" (a full 2x2 precision).
    smca.MODULATION.SCALE = "independent"
    # Bandwidth of the Gaussian (Eq. 3): the larger, the wider.
    smca.MODULATION.BETA = 8.0
    # Linear layers of the MLP that predicts the centre: 3 as released, 2 as in the paper.
    smca.MODULATION.CENTER_LAYERS = 3

    # Conditional DETR's decoder.
    smca.CONDITIONAL = node()
    # How its spatial queries are formed: "CSQ" as proposed, or the variants of its Table 3:
    # "CSQ-C", "CSQ-T", "CSQ-P", "CSQ-I".
    smca.CONDITIONAL.SPATIAL_QUERY = "CSQ"
    # Reference points are predicted from the "query" embedding, or each a "parameter".
    smca.CONDITIONAL.REFERENCE = "query"

    # Deformable DETR's encoder and decoder.
    smca.DEFORMABLE = node()
    # Places sampled by a head in each scale.
    smca.DEFORMABLE.NUM_POINTS = 4
    # Each decoder layer starts from the boxes of the one before.
    smca.DEFORMABLE.REFINE = False

    smca.LOSS = node()
    # "focal": sigmoid focal loss; "softmax": DETR's cross-entropy with a no-object class.
    smca.LOSS.CLASSIFICATION = "focal"
    smca.LOSS.CLASS_WEIGHT = 2.0  # weight of the classification loss
    smca.LOSS.L1_WEIGHT = 5.0  # weight of the boxes' L1 distance, in fractions of the image
    smca.LOSS.GIOU_WEIGHT = 2.0  # weight of the boxes' 1 - GIoU
    smca.LOSS.FOCAL_ALPHA = 0.25  # weight of objects, in [0, 1]; background has the rest
    smca.LOSS.FOCAL_GAMMA = 2.0  # the larger, the less do easy queries count
    # Weight of the no-object class in the softmax loss.
    smca.LOSS.NO_OBJECT_WEIGHT = 0.1
    # Supervise the output of every decoder layer, not only the last.
    smca.LOSS.AUXILIARY = True

    # The costs by which the Hungarian matcher gives each object a query.
    smca.MATCHER = node()
    smca.MATCHER.CLASS_COST = 2.0  # weight of the class's cost
    smca.MATCHER.L1_COST = 5.0  # weight of the boxes' L1 distance, in fractions of the image
    smca.MATCHER.GIOU_COST = 2.0  # weight of the boxes' -GIoU

    # Ours: keep an exponential moving average of the weights, and evaluate with it.
    cfg.MODEL.EMA = node({"ENABLED": False})
    # Ours: the part of the old average in the one after an iteration, in [0, 1); less in the first.
    cfg.MODEL.EMA.DECAY = 0.9998
    # Ours: train although what is frozen is random, because no weights were loaded: for tests and
    # measurements alone.
    cfg.MODEL.BACKBONE.FREEZE_RANDOM = False
    # Ours: "basic" (7x7 convolution and max-pooling) or "conv" (two 3x3 convolutions).
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    # Ours: learning rate of the backbone as a fraction of SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Ours: that of what places Deformable DETR's samples and references.
    cfg.SOLVER.SAMPLING_MULTIPLIER = 0.1
    # Ours: what mixed precision computes in. "auto": "float16", with a scaled loss, on CUDA, and
    # "bfloat16" on a CPU. "bfloat16" has a float32's range but an eighth of float16's accuracy.
    cfg.SOLVER.AMP.PRECISION = "auto"
    # Ours: "AdamW", or "SGD" for Detectron2's Faster R-CNN.
    cfg.SOLVER.OPTIMIZER = "AdamW"
    # Ours: short side before the random crop, one of these.
    cfg.INPUT.CROP.MIN_SIZE_BEFORE = (400, 500, 600)
    # Ours: besides AP over all classes, that of each.
    cfg.TEST.PER_CLASS_AP = True
    # Ours: datasets in COCO's format, as [name, annotation file, image folder].
    cfg.DATASETS.COCO_FORMAT = []


def get_cfg() -> CN:
    """The whole configuration with its defaults, for the inner ring and the native host.

    Keys shared with Detectron2 have Detectron2's names and defaults.
    """
    cfg = CN()
    cfg.VERSION = 2  # of the config's format

    cfg.MODEL = CN()
    # "SMCA", or on Detectron2 one of its own.
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    # "cuda" (the CPU where there is no GPU), "cuda:1" for one of several GPUs, or "cpu".
    cfg.MODEL.DEVICE = "cuda"
    # Starting weights: a checkpoint of this project, a torchvision ResNet (.pth) or a
    # torchvision-layout ResNet of Detectron2's model zoo (.pkl); a path, or an address
    # (detectron2://, https://) that is fetched once.
    cfg.MODEL.WEIGHTS = ""
    # Per channel, in the order of INPUT.FORMAT, for pixels in 0..255.
    cfg.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]  # as PIXEL_MEAN; positive
    cfg.MODEL.BACKBONE = CN()
    # Of SMCA: build_smca_resnet_backbone; on Detectron2 any of its backbones.
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    # Stages that are not trained: 1 is the stem, 2 the stem and res2, ...
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.MODEL.RESNETS = CN()
    # 10 (one basic block a stage), 18, 34, 50, 101 or 152.
    cfg.MODEL.RESNETS.DEPTH = 50
    # "FrozenBN", "BN", "SyncBN", "GN" or "" (none).
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.RESNETS.NUM_GROUPS = 1  # groups of a bottleneck's 3x3 convolution (ResNeXt)
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64  # channels of such a group in res2
    # Where a bottleneck has its stride: its first 1x1 convolution, or the 3x3 (torchvision).
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    # 2 keeps res5 at stride 16 (DC5).
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256  # channels of res2; doubled stage by stage
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64  # channels of the stem

    cfg.INPUT = CN()
    cfg.INPUT.FORMAT = "BGR"  # order of the channels
    # Short sides in pixels; 0: no resizing.
    cfg.INPUT.MIN_SIZE_TRAIN = (800,)
    # "choice": one of MIN_SIZE_TRAIN; "range": anything between its two numbers.
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = 1333  # the long side in pixels, at most
    cfg.INPUT.MIN_SIZE_TEST = 800  # the short side in pixels; 0: no resizing
    cfg.INPUT.MAX_SIZE_TEST = 1333  # the long side in pixels, at most
    # "horizontal", "vertical" or "none".
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    # For one image in two, a random crop before the resizing.
    cfg.INPUT.CROP = CN({"ENABLED": False})
    cfg.INPUT.CROP.TYPE = "relative_range"  # of SMCA: "absolute_range"
    cfg.INPUT.CROP.SIZE = [0.9, 0.9]  # with "absolute_range" the least and most side, in pixels

    cfg.DATASETS = CN()
    cfg.DATASETS.TRAIN = ()  # names of datasets, of COCO_FORMAT or Detectron2's own of COCO
    cfg.DATASETS.TEST = ()  # those to evaluate on
    cfg.DATALOADER = CN()
    # Loader processes of each training process.
    cfg.DATALOADER.NUM_WORKERS = 4
    # Batches of images that are all wide or all high, so that there is less padding.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"  # each image once an epoch, in random order
    # Leave images without annotations out of training (else they train as background).
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True

    cfg.SOLVER = CN()
    # "WarmupMultiStepLR" or "WarmupCosineLR".
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.MAX_ITER = 40000  # iterations of the whole run
    # Images an iteration, over all workers.
    cfg.SOLVER.IMS_PER_BATCH = 16
    # The number of workers IMS_PER_BATCH, BASE_LR and the schedule are written for; with another
    # number they are scaled. 0: never scale.
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    cfg.SOLVER.BASE_LR = 0.001  # learning rate, positive
    cfg.SOLVER.BASE_LR_END = 0.0  # the last learning rate of WarmupCosineLR
    cfg.SOLVER.GAMMA = 0.1  # factor of the learning rate at STEPS, positive
    # Iterations at which the learning rate is multiplied by GAMMA.
    cfg.SOLVER.STEPS = (30000,)
    cfg.SOLVER.WARMUP_FACTOR = 1.0 / 1000  # of the learning rate, in the first iteration
    cfg.SOLVER.WARMUP_ITERS = 1000  # iterations until the learning rate is whole
    cfg.SOLVER.WARMUP_METHOD = "linear"  # how the learning rate grows in them
    # Squeeze the schedule into the iterations after the warm-up; else it runs from the first.
    cfg.SOLVER.RESCALE_INTERVAL = False
    cfg.SOLVER.MOMENTUM = 0.9  # momentum of SGD
    cfg.SOLVER.WEIGHT_DECAY = 0.0001  # weight decay of all but normalisation layers
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0  # weight decay of normalisation layers
    # Iterations from one checkpoint to the next.
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000
    # Scale gradients down whose norm is larger than CLIP_VALUE.
    cfg.SOLVER.CLIP_GRADIENTS = CN({"ENABLED": False})
    # It must be "full_model": the norm of all gradients together.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0  # the largest norm, positive
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0  # 2.0: the Euclidean norm
    # Mixed precision, see PRECISION.
    cfg.SOLVER.AMP = CN({"ENABLED": False})

    cfg.TEST = CN()
    # Iterations from one evaluation to the next; 0: only at the end.
    cfg.TEST.EVAL_PERIOD = 0
    cfg.TEST.DETECTIONS_PER_IMAGE = 100  # the best of each image that are kept

    cfg.OUTPUT_DIR = "./output"  # where a run writes all its files
    # Of all that is random. Negative: drawn at the start and kept in the checkpoint.
    cfg.SEED = -1
    cfg.CUDNN_BENCHMARK = False  # let cuDNN try which convolution is fastest
    # Iterations from one picture of detections in TensorBoard to the next; 0: none.
    cfg.VIS_PERIOD = 0
    add_smca_config(cfg)
    return cfg


# Groups and keys that only Detectron2 reads. They stand in every config Detectron2 dumps, so the
# native host passes over them instead of refusing its `config.yaml`.
DETECTRON2_ONLY = frozenset(
    """
    FLOAT32_PRECISION GLOBAL
    DATALOADER.REPEAT_SQRT DATALOADER.REPEAT_THRESHOLD
    DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
    DATASETS.PROPOSAL_FILES_TEST DATASETS.PROPOSAL_FILES_TRAIN
    INPUT.MASK_FORMAT
    MODEL.ANCHOR_GENERATOR MODEL.FPN MODEL.KEYPOINT_ON MODEL.LOAD_PROPOSALS MODEL.MASK_ON
    MODEL.PANOPTIC_FPN MODEL.PROPOSAL_GENERATOR MODEL.RETINANET MODEL.ROI_BOX_CASCADE_HEAD
    MODEL.ROI_BOX_HEAD MODEL.ROI_HEADS MODEL.ROI_KEYPOINT_HEAD MODEL.ROI_MASK_HEAD MODEL.RPN
    MODEL.SEM_SEG_HEAD
    MODEL.RESNETS.DEFORM_MODULATED MODEL.RESNETS.DEFORM_NUM_GROUPS
    MODEL.RESNETS.DEFORM_ON_PER_STAGE MODEL.RESNETS.OUT_FEATURES
    SOLVER.BIAS_LR_FACTOR SOLVER.NESTEROV SOLVER.NUM_DECAYS
    SOLVER.WEIGHT_DECAY_BIAS
    TEST.AUG TEST.EXPECTED_RESULTS TEST.KEYPOINT_OKS_SIGMAS TEST.PRECISE_BN
    """.split()  # noqa: SIM905
)


def load_cfg(cfg: CN, config_file: str = "", opts: Sequence[Any] = ()) -> CN:
    """Merge a YAML file (with its ``_BASE_`` chain) and ``KEY VALUE`` pairs into ``cfg``.

    Args:
        cfg: the defaults, of :func:`get_cfg` or of Detectron2 with :func:`add_smca_config`.
        config_file: path of a YAML file, or "".
        opts: alternating keys and values, as they stand on a command line.

    Raises:
        ConfigError: a file that is missing or no YAML, a key that does not exist (with the nearest
            one that does), a value of another type. No code runs from a file.
    """
    had = flatten(cfg)
    source = config_file
    try:
        if config_file:
            loaded = _without_foreign_keys(read_config_file(config_file), cfg)
            _merge_file(cfg, type(cfg)(loaded), config_file)
        source = "the command line"
        if len(opts) % 2:
            raise ConfigError(f"options come as KEY VALUE pairs; {opts[-1]!r} has no value")
        for key, value in zip(opts[::2], opts[1::2], strict=True):
            if key.startswith("--"):
                raise ConfigError(f"{key} stands after KEY VALUE pairs; flags come before them")
            _require_key(cfg, key, source)
            if isinstance(flatten(cfg).get(key), float):
                value = _number(key, value)
            cfg.merge_from_list([key, value])
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source}: {_short(str(error))}") from error
    except (RecursionError, MemoryError) as error:
        # Python's parser of literals has both.
        raise ConfigError(f"{source} has a value that is nested too deeply") from error
    for key, value in flatten(cfg).items():
        if value is None and had.get(key) is not None:
            raise ConfigError(f"{key} has no value; leave it out to have {had[key]!r}")
    return cfg


def _number(key: str, value: Any) -> float:
    try:
        return float(value)  # 1 is a learning rate, too
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{key} is {_short(repr(value))}; it must be a number") from None


def _short(text: str, most: int = 400) -> str:
    """A text in one line, the middle of a long one left out."""
    text = " ".join(text.strip("'\"").split())
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def _merge_file(cfg: CN, loaded: CN, config_file: str) -> None:
    for key in flatten(loaded):
        _require_key(cfg, key, config_file)
    cfg.merge_from_other_cfg(loaded)


def _without_foreign_keys(node: dict, defaults: CN, prefix: str = "") -> dict:
    """``node`` less the keys only Detectron2 reads, where ``defaults`` does not have them."""
    kept = {}
    for key, value in node.items():
        if key not in defaults and prefix + key in DETECTRON2_ONLY:
            logger.debug("%s is read by Detectron2 only and passed over", prefix + key)
        elif isinstance(value, dict) and isinstance(defaults.get(key), dict):
            kept[key] = _without_foreign_keys(value, defaults[key], f"{prefix}{key}.")
        else:
            kept[key] = value
    return kept


def _require_key(cfg: CN, key: str, source: str) -> None:
    known = flatten(cfg)
    if key not in known and not any(name.startswith(key + ".") for name in known):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown config key {_short(key)} in {source}{hint}")


def flatten(cfg: dict, prefix: str = "") -> dict[str, object]:
    """``{"MODEL.SMCA.NHEADS": 8, ...}`` of a nested config."""
    flat = {}
    for key, value in cfg.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
