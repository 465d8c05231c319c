"""The wrapper of a model that workers train together, the same in both hosts."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import world_size


def data_parallel(model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
    """Wrap ``model`` so that its gradients are averaged over the workers, if there are several.

    Args:
        model: the same in all workers, each on its device.
        find_unused_parameters: some parameters get no gradient.
    """
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
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
