"""Normalisations of convolutional maps. Statistics leave padding out."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class GroupNorm(nn.GroupNorm):
    """Group norm of 32 groups, as Detectron2's, or the next fewer that divide.

    Below 64 channels a group has at least 4 of them. Its statistics leave padding out.
    """

    def __init__(self, channels: int):
        most = 32 if channels >= 64 else max(1, channels // 4)
        groups = max(count for count in range(1, most + 1) if channels % count == 0)
        super().__init__(groups, channels)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (B, C, h, w).
            valid: (B, 1, h, w), True where a cell is not padding; None: everywhere.
        """
        if valid is None:
            # Without torch's check: a single number is normed to zero, as it is beside padding.
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        # In float32, as torch's is under autocast: squares and sums of float16 overflow.
        dtype = torch.promote_types(x.dtype, torch.float32)
        groups = x.to(dtype).unflatten(1, (self.num_groups, -1))  # (B, G, C / G, h, w)
        valid = valid[:, None].to(dtype)
        count = valid.sum((-2, -1), keepdim=True) * groups.shape[2]
        mean = (groups * valid).sum((2, 3, 4), keepdim=True) / count
        centered = groups - mean
        variance = (centered.square() * valid).sum((2, 3, 4), keepdim=True) / count
        normed = (centered * (variance + self.eps).rsqrt()).flatten(1, 2)
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's frozen batch norm, as one scale and one shift."""

    _affine: tuple[list[tuple[Tensor, int]], tuple[Tensor, Tensor]] | None = None

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,), kept until one of the buffers changes.

        Computing them takes five operations a norm. A GPU with few images would wait for these.
        """
        numbers = (self.weight, self.bias, self.running_mean, self.running_var)
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or self.weight.is_inference():
            return self._scale_and_shift()
        seen = [(number, number._version) for number in numbers]
        if self._affine is None or any(
            old is not new or before != now
            for (old, before), (new, now) in zip(self._affine[0], seen, strict=True)
        ):
            with torch.inference_mode(False):  # or training could not use them
                self._affine = seen, self._scale_and_shift()
        return self._affine[1]

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "FrozenBN": FrozenBatchNorm,
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": GroupNorm,
    "": lambda channels: nn.Identity(),
}
