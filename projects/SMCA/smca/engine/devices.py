"""Check the device that a config names."""

import re
from collections.abc import Iterable

import torch

from ..errors import ConfigError

# torch's names of the GPUs that it was built for: sm_90, sm_90a, compute_120.
_BUILT_FOR = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
# The oldest GPUs that pip's torch has code for, and the build that has code for older ones.
_OLDEST, _OLD_GPUS = (7, 5), " for CUDA 12.6"


def take_gpu(name: str, world_size: int) -> bool:
    """Make the GPU that MODEL.DEVICE numbers torch's current one; return False without any GPU.

    Raises:
        ConfigError: a GPU that does not exist, a number for several workers, or a GPU that this
            build of torch has no code for.
    """
    index = torch.device(name).index
    if index is not None and world_size > 1:
        raise ConfigError(
            f"MODEL.DEVICE is {name!r}; it must be 'cuda' for {world_size} processes, which have a "
            "GPU each: the environment's CUDA_VISIBLE_DEVICES chooses which"
        )
    if not torch.cuda.is_available():
        return False
    count = torch.cuda.device_count()
    if index is None:
        _require_code_for(range(min(world_size, count)))
        return True
    if index >= count:
        raise ConfigError(
            f"MODEL.DEVICE is {name!r}; there are {count} GPUs here, it must be 'cuda' or one of "
            f"'cuda:0' to 'cuda:{count - 1}'"
        )
    _require_code_for([index])
    # Streams and events belong to the current device unless one is named.
    torch.cuda.set_device(index)
    return True


def _require_code_for(gpus: Iterable[int]) -> None:
    """Raise a ConfigError if this build of torch has no code for one of the GPUs."""
    matches = [_BUILT_FOR.fullmatch(name) for name in torch.cuda.get_arch_list()]
    built = [(m[1], (int(m[2]), int(m[3])), m[4]) for m in matches if m]
    for gpu in gpus if built else ():  # AMD's GPUs have other names
        has = torch.cuda.get_device_capability(gpu)
        if any(_runs_on(has, *code) for code in built):
            continue
        build = _OLD_GPUS if has < _OLDEST else ""
        raise ConfigError(
            f"MODEL.DEVICE is 'cuda', but torch {torch.__version__} has no code for the GPU {gpu}, "
            f"{torch.cuda.get_device_name(gpu)} of compute capability {has[0]}.{has[1]}, only "
            f"{', '.join(torch.cuda.get_arch_list())}; pip uninstall torch torchvision, then "
            f"install those{build} by the command of https://pytorch.org/get-started/locally; or "
            "set MODEL.DEVICE cpu"
        )


def _runs_on(has: tuple[int, int], kind: str, built: tuple[int, int], suffix: str) -> bool:
    """Return whether a GPU of compute capability ``has`` runs code built for ``built``."""
    if suffix == "a":  # runs on this one alone
        return built == has
    if kind == "compute":  # compiled for the GPU on loading
        return built <= has
    return built[0] == has[0] and built[1] <= has[1]
