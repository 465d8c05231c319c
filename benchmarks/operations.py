"""What torch really runs: attention kernels, and the largest tensor that anything makes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Watches the operations that run inside its ``with`` block, backward passes too.

    Attributes:
        attention: fused attention kernels by name, in the order of their first use; where
            ``scaled_dot_product_attention`` is put together from plain operations, none.
        largest: elements of the largest tensor that an operation made.
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
        # A view, such as one that expands a tensor, takes no memory.
        if not func.is_view:
            sizes = (x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            self.largest = max(self.largest, *sizes, 0)
        return out
