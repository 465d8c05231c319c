"""An exponential moving average of the weights, which evaluations use (MODEL.EMA)."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..checkpoints.loading import load_state


class MovingAverage:
    """Averages a model's weights over training, in a copy of the model.

    After iteration n, counted from 0, with weights W: E <- d E + (1 - d) W, where
    d = min(decay, (1 + n) / (10 + n)). The average is short while n is small, so that it forgets
    the first weights. Buffers, such as the statistics of batch norms, are copied. As E depends on n
    and W alone, a resumed run and all workers have the same average.

    Attributes:
        source: the model that is trained, on its device, without a wrapper.
        model: the copy, in evaluation mode; it is not trained.
        decay: d in late iterations, in [0, 1).
    """

    def __init__(self, source: nn.Module, *, decay: float):
        self.decay = decay
        self.source = source
        self.model = copy.deepcopy(source).eval().requires_grad_(False)
        # torch's AveragedModel makes the host wait for the device in each update.
        self._weights = list(self.model.parameters()), list(source.parameters())
        self._buffers = list(self.model.buffers()), list(source.buffers())
        self._loaded = False

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Average in the weights after ``iteration``."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        get_ema_multi_avg_fn(decay)(*self._weights, None)
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)

    def begin(self) -> None:
        """Start from the present weights of ``source``, unless a state has been loaded."""
        if not self._loaded:
            self.model.load_state_dict(self.source.state_dict())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights, under the names of the model."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """
        Raises:
            CheckpointError: tensors of the model are missing, or of another shape.
        """
        load_state(self.model, state, source="the checkpoint's moving average", strict=True)
        self._loaded = True
