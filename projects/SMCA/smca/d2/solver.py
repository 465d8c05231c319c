"""The optimizer for Detectron2's own trainers and loops, whose builder knows SGD alone."""

import torch
from detectron2.config import CfgNode
from torch import nn

from ..checkpoints.loading import frozen_tensors, some
from ..errors import ConfigError
from ..training import solver


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of ``cfg``, with its learning rates by part and full-model clipping.

    A trainer of Detectron2 does not read some keys of this project; it is refused a config in
    which they matter.

    Raises:
        ConfigError: such a key is set, or nothing will fill the frozen stages of the backbone.
    """
    only_ours = {
        "MODEL.EMA.ENABLED": cfg.MODEL.EMA.ENABLED,
        "SOLVER.AMP.PRECISION": cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.PRECISION == "bfloat16",
    }
    for key, is_set in only_ours.items():
        if is_set:
            raise ConfigError(
                f"Detectron2's trainers do not read {key}; take smca.d2.trainer.Trainer in place "
                "of DefaultTrainer, or leave the key at its default"
            )
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE != "full_model":
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; it must be 'full_model', or "
            "take Detectron2's own build_optimizer"
        )
    frozen = frozen_tensors(model)
    if frozen and not cfg.MODEL.WEIGHTS and not cfg.MODEL.BACKBONE.FREEZE_RANDOM:
        raise ConfigError(
            f"MODEL.WEIGHTS is empty, which leaves random what training does not change: "
            f"{some(frozen)}; set it to the weights of a backbone, as the files of configs/ do "
            "(MODEL.BACKBONE.FREEZE_RANDOM True trains all the same)"
        )
    return solver.build_optimizer(cfg, model)
