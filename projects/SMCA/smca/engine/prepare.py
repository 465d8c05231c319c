"""Prepare a run: a config that can work, weights, data and a folder."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable

from fvcore.common.config import CfgNode

from ..checkpoints import fetch, pop_weights, read_checkpoint
from ..checkpoints.checkpointer import can_resume, newest_checkpoint
from ..checkpoints.choosing import Weights, trained_weights
from ..checkpoints.files import require_file
from ..checkpoints.loading import trained_classes
from ..config import is_own_model, pretrains, validate
from ..data.coco import count_classes, own_datasets
from ..data.grey import count_grey_bits
from ..data.shapes import QUICKSTART, missing_shapes, write_shapes_dataset
from ..errors import ConfigError
from ..training.solver import scale_to_workers
from .devices import take_gpu


def prepare(cfg: CfgNode, world_size: int = 1, args: argparse.Namespace | None = None) -> CfgNode:
    """Return a config that a run can start with, frozen.

    Check its values, scale it to the number of workers, choose a device that exists, fetch the
    weights, draw the dataset of shapes if it is used and missing, count the classes and the grey
    values' bits of the data, and make OUTPUT_DIR.

    Args:
        cfg: the merged configuration, which is changed. If MODEL.DEVICE has a GPU's number, that
            GPU becomes torch's current one.
        args: the command line, which says what a run needs weights for; None: fetch none.

    Raises:
        ConfigError: a value that cannot work, a GPU that is missing or that torch has no code for,
            or an OUTPUT_DIR that cannot be written.
        DatasetError: the classes of a dataset cannot be read.
        CheckpointError, FileNotFoundError: the weights are missing or cannot be fetched.
    """

    def say(text: str) -> None:
        if os.getenv("RANK", "0") == "0":  # torchrun starts many
            print(text, file=sys.stderr, flush=True)

    validate(cfg)
    cfg = scale_to_workers(cfg, world_size)
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch}; it must be a multiple of the {world_size} processes"
        )
    if cfg.MODEL.DEVICE.startswith("cuda") and not take_gpu(cfg.MODEL.DEVICE, world_size):
        say("MODEL.DEVICE: there is no GPU, the CPU is used")
        cfg.MODEL.DEVICE = "cpu"
    if world_size > 1 and cfg.MODEL.DEVICE not in ("cpu", "cuda"):
        raise ConfigError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; it must be 'cuda' or 'cpu' for {world_size} "
            "processes"
        )
    path = _have_weights(cfg, args, say) if args is not None else None
    builtin = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} - own_datasets(cfg).keys()
    if folder := missing_shapes(builtin):
        say(f"Drawing {sum(QUICKSTART.values())} images of shapes in {folder}, once")
        write_shapes_dataset(folder, **QUICKSTART)
    if is_own_model(cfg) and cfg.MODEL.SMCA.NUM_CLASSES == 0:
        if args is not None and args.eval_only and path:
            softmax = cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"
            content, source = read_checkpoint(path), cfg.MODEL.WEIGHTS
            cfg.MODEL.SMCA.NUM_CLASSES = max(
                0, trained_classes(pop_weights(content), content, softmax)
            )
        if cfg.MODEL.SMCA.NUM_CLASSES == 0:
            cfg.MODEL.SMCA.NUM_CLASSES, source = count_classes(cfg)
        say(f"MODEL.SMCA.NUM_CLASSES: {cfg.MODEL.SMCA.NUM_CLASSES}, as in {source}")
    if cfg.INPUT.GREY_BITS == 0:
        cfg.INPUT.GREY_BITS, source = count_grey_bits(cfg)
        if source:
            say(f"INPUT.GREY_BITS: {cfg.INPUT.GREY_BITS}, as in {source}")
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except (OSError, ValueError) as error:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be written: {error}") from error
    cfg.freeze()
    return cfg


def _have_weights(cfg: CfgNode, args: argparse.Namespace, say: Callable[[str], None]) -> str | None:
    """Choose the weights of an evaluation, and fetch weights before any data is read.

    Returns:
        the file's path; None if a run resumes, or only Detectron2 knows the address.
    """
    resumes = args.resume and can_resume(cfg.OUTPUT_DIR)
    if args.eval_only:
        if pretrains(cfg):
            raise ConfigError(
                "MODEL.SMCA.DECODER.NAME is 'UPDETRDecoder', which finds patches, and cannot be "
                "evaluated; fine-tune its checkpoint, and evaluate that"
            )
        if not cfg.DATASETS.TEST:
            raise ConfigError("DATASETS.TEST is empty; name the datasets to evaluate on")
        if resumes:
            weights = Weights(newest_checkpoint(cfg.OUTPUT_DIR), "the last one, by --resume")
        else:
            weights = trained_weights(cfg, config_file=args.config_file, opts=args.opts)
        say(str(weights))
        cfg.MODEL.WEIGHTS = weights.path
    elif resumes:
        return None
    # Detectron2 may know an address of another kind.
    if not cfg.MODEL.WEIGHTS or "://" in (path := fetch(cfg.MODEL.WEIGHTS)):
        return None
    require_file(path, key="MODEL.WEIGHTS")
    return path
