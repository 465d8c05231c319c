"""AdamW with a smaller learning rate for the backbone (section 4.1)."""

from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from smca.d2.lazy import adamw, learning_rate_factor

# The trainer sets params.model.
optimizer = L(adamw)(
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        lr_factor_func=L(learning_rate_factor)(backbone=0.1, sampling=0.1),
    ),
    lr=1e-4,
    weight_decay=1e-4,
    # One pass over each parameter; on a CPU and on CUDA. Not for SGD, whose momentum is
    # uninitialised memory if mixed precision skips the first step.
    fused=True,
    clip="${train.clip_grad}",
)
