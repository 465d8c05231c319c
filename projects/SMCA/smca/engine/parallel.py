"""The wrapper of a model that workers train together, the same in both hosts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def data_parallel(
    model: nn.Module, device: torch.device, *, find_unused_parameters: bool = False
) -> DistributedDataParallel:
    """Wrap ``model`` so that its gradients are averaged over the workers.

    Args:
        model: the same in all workers, on ``device``.
        device: this worker's, with the GPU's number.
        find_unused_parameters: some parameters get no gradient.
    """
    parallel = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused_parameters,
        gradient_as_bucket_view=True,  # hold gradients once
    )
    # All workers take the first one's statistics of norms that train. Other buffers, such as those
    # of frozen norms, never change and need not be sent before each forward pass. The constructor's
    # argument has another name in newer versions of torch.
    norms = nn.modules.batchnorm._BatchNorm
    parallel.broadcast_buffers = any(isinstance(module, norms) for module in model.modules())
    return parallel
