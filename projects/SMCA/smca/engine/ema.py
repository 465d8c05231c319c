"""An exponential moving average of the weights, which is what is evaluated (MODEL.EMA)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..checkpoints.loading import load_state


class MovingAverage:
    """The average of a model's weights over training, as a model of its own.

    Iteration n, from 0, makes it E <- d E + (1 - d) W of the weights W that it leaves, with
    d = min(decay, (1 + n) / (10 + n)): while n is small the average is short, and forgets what the
    weights began with. Buffers, such as the statistics of batch norms, are copied. As all of this
    is a function of n and W, a resumed run and all processes of a run have the same average.

    Attributes:
        model: in evaluation mode; not to be trained.
    """

    def __init__(self, source: nn.Module, *, decay: float):
        """
        Args:
            source: the model that is trained, on its device and in no wrapper.
            decay: d of late iterations, in [0, 1).
        """
        self.decay = decay
        self.source = source
        self.model = copy.deepcopy(source).eval().requires_grad_(False)
        # torch's AveragedModel would have the host wait for the device in each update.
        self._weights = list(self.model.parameters()), list(source.parameters())
        self._buffers = list(self.model.buffers()), list(source.buffers())
        self._loaded = False

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take up the weights that ``iteration`` has left."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        get_ema_multi_avg_fn(decay)(*self._weights, None)
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)

    def begin(self) -> None:
        """Start from the weights that ``source`` has now, unless a state has been loaded."""
        if not self._loaded:
            self.model.load_state_dict(self.source.state_dict())

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, with the names they have in the model."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """
        Raises:
            CheckpointError: tensors of the model are missing, or of another shape.
        """
        load_state(self.model, state, source="the checkpoint's moving average", whole=True)
        self._loaded = True
