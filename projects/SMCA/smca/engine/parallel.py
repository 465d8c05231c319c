"""The wrapper of a model that workers train together, the same in both hosts."""

import logging

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import world_size

logger = logging.getLogger(__name__)


def data_parallel(model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
    """Wrap ``model`` so that its gradients are averaged over the workers, if there are several.

    Args:
        model: the same in all workers, each on its device.
        find_unused_parameters: some parameters get no gradient.
    """
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type == "cpu":
        _normalise_alone(model)
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


def _normalise_alone(model: nn.Module) -> None:
    """Make batch norms of all workers those of each alone, because torch has the former on GPUs."""
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    for norm in norms:
        norm.__class__ = nn.BatchNorm2d  # with the same parameters, which the optimizer has
    if norms:
        logger.warning(
            "SyncBN needs GPUs: on a CPU each process normalises by its own images, as BN does"
        )
