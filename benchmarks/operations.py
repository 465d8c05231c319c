"""Record the attention kernels that torch runs, and the size of the largest tensor it creates."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Record the operations that run inside its ``with`` block, including backward passes.

    Attributes:
        attention: names of the fused attention kernels, in the order of their first use; empty if
            ``scaled_dot_product_attention`` falls back to plain operations.
        largest: number of elements of the largest tensor that an operation created.
    """

    def __init__(self):
        super().__init__()
        self.attention: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.startswith("_scaled_dot_product") and name not in self.attention:
            self.attention.append(name)
        # A view, such as an expanded tensor, takes no memory.
        if not func.is_view:
            sizes = (x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            self.largest = max(self.largest, *sizes, 0)
        return out
