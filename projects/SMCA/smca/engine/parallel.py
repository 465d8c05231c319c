"""A model that workers train together, the same in both hosts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def data_parallel(
    model: nn.Module, device: torch.device, *, find_unused_parameters: bool = False
) -> DistributedDataParallel:
    """``model``, whose gradients are averaged over the workers of the process group.

    Args:
        model: the same in all workers, on ``device``.
        device: of this worker; of several GPUs with its number.
        find_unused_parameters: some have no gradient.
    """
    parallel = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused_parameters,
        gradient_as_bucket_view=True,  # gradients are not held twice
    )
    # Statistics that training changes are the first worker's in all of them. Other buffers, as of
    # frozen norms, stay what they are, and are not sent around before each forward pass. Set here,
    # as the argument has another name in newer torches.
    norms = nn.modules.batchnorm._BatchNorm
    parallel.broadcast_buffers = any(isinstance(module, norms) for module in model.modules())
    return parallel
