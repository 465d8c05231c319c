"""The config keys of data, training and evaluation: ``KEY=Key(default, meaning, rule)``."""

from .rules import (
    BELOW_ONE,
    COCO_FORMAT,
    DEVICE,
    FRACTION,
    NAMES,
    NOT_NEGATIVE,
    ONLY_THEIRS,
    OPTIONAL,
    PATH,
    POSITIVE,
    POSITIVE_OR_INFINITE,
    SEED,
    SIDES,
    SIZES,
    STEPS,
    Key,
    Own,
    at_least,
    group,
    one_of,
)

RUN_KEYS: dict[str, Key] = {}
RUN_KEYS |= group(
    "",
    VERSION=Key(2, "Version of the config's format."),
    OUTPUT_DIR=Key("./output", "Folder where a run writes all its files.", PATH),
    SEED=Key(-1, "Seed of all that is random. Negative: drawn, and kept in the checkpoint.", SEED),
    CUDNN_BENCHMARK=Key(False, "Let cuDNN try which convolution is the fastest."),
    FLOAT32_PRECISION=Key(
        "",
        "Precision of float32 products on GPUs, as torch.set_float32_matmul_precision has it; '': "
        "torch's own.",
        one_of("", "highest", "high", "medium"),
    ),
    VIS_PERIOD=Key(
        0, "Iterations between pictures of detections in TensorBoard; 0: none.", at_least(0)
    ),
)
RUN_KEYS |= group(
    "INPUT",
    FORMAT=Key("BGR", "Order of the channels.", one_of("RGB", "BGR")),
    MIN_SIZE_TRAIN=Key((800,), "Lengths of the short side in pixels; 0: no resizing.", SIZES),
    MIN_SIZE_TRAIN_SAMPLING=Key(
        "choice",
        "'choice': one of MIN_SIZE_TRAIN; 'range': any length between its two numbers.",
        one_of("choice", "range"),
    ),
    MAX_SIZE_TRAIN=Key(1333, "Greatest length of the long side in pixels.", at_least(1)),
    MIN_SIZE_TEST=Key(800, "Length of the short side in pixels; 0: no resizing.", at_least(0)),
    MAX_SIZE_TEST=Key(1333, "Greatest length of the long side in pixels.", at_least(1)),
    RANDOM_FLIP=Key(
        "horizontal", "Flip one image in two.", one_of("horizontal", "vertical", "none")
    ),
    GREY_BITS=Own(
        0,
        "How many bits of whole grey values in files of 16 bits or more are used: with 12, as of "
        "many X-ray, thermal and microscope cameras, 4095 is white. 0: as many as the brightest "
        "value in a sample of DATASETS.COCO_FORMAT needs, or else in the image; 9 at least.",
        one_of(0, *range(8, 17)),
    ),
)
RUN_KEYS |= group(
    "INPUT.CROP",
    ENABLED=Key(False, "Crop one image in two at random, before it is resized."),
    TYPE=Key("relative_range", "How SIZE is given.", one_of("absolute_range")),
    SIZE=Key([0.9, 0.9], "Least and greatest side of the crop.", SIDES),
    MIN_SIZE_BEFORE=Own((400, 500, 600), "Short side before the crop, one of these.", SIZES),
)
RUN_KEYS |= group(
    "DATASETS",
    TRAIN=Key((), "Datasets to train on, of COCO_FORMAT or Detectron2's own of COCO.", NAMES),
    TEST=Key((), "Datasets to evaluate on.", NAMES),
    COCO_FORMAT=Own(
        [],
        "Datasets in COCO's format. An annotation file `reader:path` has another format, which the "
        "reader of this name in SMCA_READER_REGISTRY turns into COCO's. To pre-train it is ''.",
        COCO_FORMAT,
    ),
)
RUN_KEYS |= group(
    "DATALOADER",
    NUM_WORKERS=Key(4, "Loader processes of each training process.", at_least(0)),
    ASPECT_RATIO_GROUPING=Key(True, "Batch wide and high images apart, for less padding."),
    SAMPLER_TRAIN=Key(
        "TrainingSampler",
        "Name in SMCA_SAMPLER_REGISTRY; TrainingSampler takes each image once an epoch, in random "
        "order.",
    ),
    FILTER_EMPTY_ANNOTATIONS=Key(True, "Do not train on images without annotations."),
)
RUN_KEYS |= group(
    "SOLVER",
    LR_SCHEDULER_NAME=Key(
        "WarmupMultiStepLR",
        "Schedule of the learning rate.",
        one_of("WarmupMultiStepLR", "WarmupCosineLR"),
    ),
    MAX_ITER=Key(40000, "Iterations of the whole run.", at_least(1)),
    IMS_PER_BATCH=Key(16, "Images of an iteration, over all workers.", at_least(1)),
    REFERENCE_WORLD_SIZE=Key(
        0,
        "Number of workers that IMS_PER_BATCH, BASE_LR and the schedule are written for; with "
        "another number they are scaled. 0: never.",
        at_least(0),
    ),
    BASE_LR=Key(0.001, "Learning rate.", POSITIVE),
    BASE_LR_END=Key(0.0, "Last learning rate of WarmupCosineLR.", NOT_NEGATIVE),
    GAMMA=Key(0.1, "Factor of the learning rate at each of STEPS.", POSITIVE),
    STEPS=Key((30000,), "Iterations at which the learning rate is multiplied by GAMMA.", STEPS),
    WARMUP_FACTOR=Key(0.001, "Fraction of the learning rate in the first iteration.", FRACTION),
    WARMUP_ITERS=Key(1000, "Iterations until the learning rate is whole.", at_least(0)),
    WARMUP_METHOD=Key("linear", "How the learning rate warms up.", one_of("linear", "constant")),
    RESCALE_INTERVAL=Key(
        False, "Squeeze the schedule into the iterations after the warm-up; else it starts at 0."
    ),
    MOMENTUM=Key(0.9, "Momentum of SGD.", NOT_NEGATIVE),
    NESTEROV=Key(False, "SGD has Nesterov's momentum."),
    WEIGHT_DECAY=Key(0.0001, "Weight decay of all but normalisation layers.", NOT_NEGATIVE),
    WEIGHT_DECAY_NORM=Key(0.0, "Weight decay of normalisation layers.", NOT_NEGATIVE),
    WEIGHT_DECAY_BIAS=Key(
        None, "Weight decay of biases; None: as the weights beside them.", OPTIONAL
    ),
    BIAS_LR_FACTOR=Key(1.0, "Factor of the biases' learning rate.", NOT_NEGATIVE),
    CHECKPOINT_PERIOD=Key(5000, "Iterations from one checkpoint to the next.", at_least(1)),
    BACKBONE_MULTIPLIER=Own(
        0.1, "Learning rate of the backbone, as a fraction of BASE_LR.", NOT_NEGATIVE
    ),
    SAMPLING_MULTIPLIER=Own(
        0.1, "The same of Deformable DETR's sampling offsets and reference points.", NOT_NEGATIVE
    ),
    ENCODER_MULTIPLIER=Own(1.0, "The same of the encoder.", NOT_NEGATIVE),
    OPTIMIZER=Own(
        "AdamW",
        "'SGD' is for Detectron2's Faster R-CNN. 'SGD+AdamW' is TSP's: AdamW trains the encoder, "
        "whose gradients alone are clipped, and SGD all else.",
        one_of("AdamW", "SGD", "SGD+AdamW"),
    ),
)
RUN_KEYS |= group(
    "SOLVER.CLIP_GRADIENTS",
    ENABLED=Key(False, "Scale gradients down whose norm is larger than CLIP_VALUE."),
    CLIP_TYPE=Key("value", "The norm is of all gradients together.", one_of("full_model")),
    CLIP_VALUE=Key(1.0, "The largest norm.", POSITIVE_OR_INFINITE),
    NORM_TYPE=Key(2.0, "Order of the norm; 2.0: the Euclidean norm.", POSITIVE_OR_INFINITE),
)
RUN_KEYS |= group(
    "SOLVER.AMP",
    ENABLED=Key(False, "Train in mixed precision."),
    PRECISION=Own(
        "auto",
        "Type of mixed precision. 'auto': 'float16', with a scaled loss, on CUDA and 'bfloat16' on "
        "a CPU. 'bfloat16' has float32's range but an eighth of float16's accuracy.",
        one_of("auto", "bfloat16", "float16"),
    ),
)
RUN_KEYS |= group(
    "MODEL",
    DEVICE=Key(
        "cuda", "'cuda' (the CPU where there is no GPU), 'cuda:1', 'mps' (Apple) or 'cpu'.", DEVICE
    ),
    MASK_ON=Key(False, "Predict masks, too.", ONLY_THEIRS),
    KEYPOINT_ON=Key(False, "Predict keypoints, too.", ONLY_THEIRS),
    LOAD_PROPOSALS=Key(False, "Take proposals from files.", ONLY_THEIRS),
)
RUN_KEYS |= group(
    "MODEL.EMA",
    ENABLED=Own(False, "Evaluate with an exponential moving average of the weights."),
    DECAY=Own(0.9998, "Weight of the old average in the new one; less at first.", BELOW_ONE),
)
RUN_KEYS |= group(
    "TEST",
    EVAL_PERIOD=Key(0, "Iterations between evaluations; 0: only at the end.", at_least(0)),
    DETECTIONS_PER_IMAGE=Key(100, "How many of an image's best detections are kept.", at_least(1)),
    MAX_DETS_PER_IMAGE=Own(
        100,
        "How many of an image's best detections of a class count in AP and AR; COCO's own numbers "
        "have 100.",
        at_least(10),
    ),
    PER_CLASS_AP=Own(True, "Report the AP of each class besides that over all classes."),
)
RUN_KEYS |= group(
    "TEST.AUG",
    ENABLED=Key(False, "Detect in test images of several sizes and flips.", ONLY_THEIRS),
)
RUN_KEYS |= group(
    "TEST.PRECISE_BN",
    ENABLED=Key(False, "Measure batch norms' statistics before evaluations.", ONLY_THEIRS),
)
