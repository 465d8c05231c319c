"""The depthwise bidirectional encoder that SMCA's authors released after the paper.

Shapes: B images, L tokens of all scales, C channels.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .encoder import EncoderBlock
from .layers import FFN, linear
from .memory import Memory
from .parts import Encoder
from .registry import SMCA_ENCODER_REGISTRY


class BidirectionalMixer(nn.Module):
    """Depthwise convolutions within each scale, and between neighbours in both directions."""

    def __init__(self, *, dim: int, num_scales: int, kernel_size: int):
        super().__init__()

        def depthwise(stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(
                dim, dim, kernel_size, stride=stride, padding=kernel_size // 2, groups=dim
            )

        self.project_in = linear(dim, dim)
        self.within = nn.ModuleList(depthwise() for _ in range(num_scales))
        # From scale s to s + 1, and from s + 1 to s.
        self.down = nn.ModuleList(depthwise(stride=2) for _ in range(num_scales - 1))
        self.up = nn.ModuleList(depthwise() for _ in range(num_scales - 1))
        self.project_out = linear(dim, dim)

    def forward(self, memory: Memory) -> Tensor:
        """Mixed tokens (B, L, C). Padding is not left out."""
        maps = memory.maps(self.project_in(memory.keys()))
        maps = [conv(x) for conv, x in zip(self.within, maps, strict=True)]
        mixed = list(maps)
        for s, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            mixed[s + 1] = mixed[s + 1] + down(maps[s])
            coarser = F.interpolate(
                up(maps[s + 1]), size=maps[s].shape[-2:], mode="bilinear", align_corners=True
            )
            mixed[s] = mixed[s] + coarser
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in mixed], dim=1)
        return self.project_out(tokens)


@SMCA_ENCODER_REGISTRY.register()
class DepthwiseEncoder(Encoder):
    """Blocks of bidirectional mixing; then the finest scale is halved for the decoder."""

    halves = True

    def __init__(
        self,
        *,
        num_layers: int,
        num_scales: int,
        dim: int,
        ffn_dim: int,
        kernel_size: int = 5,
        dropout: float = 0.1,
    ):
        """
        Args:
            num_layers: number of blocks.
            num_scales: S, at least 2.
            dim, ffn_dim, dropout: see :class:`~smca.modeling.encoder.IntraMultiEncoder`.
            kernel_size: size of the depthwise convolutions, odd.
        """
        super().__init__()
        self.blocks = nn.ModuleList(
            EncoderBlock(
                mixer=BidirectionalMixer(dim=dim, num_scales=num_scales, kernel_size=kernel_size),
                mixer_name="mixer",
                ffn=FFN(dim, ffn_dim, dropout),
                dim=dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.reduce = nn.Conv2d(dim, dim, kernel_size=3, stride=2, padding=1)

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        if smca.NUM_SCALES < 2:
            raise ConfigError(
                f"MODEL.SMCA.NUM_SCALES is {smca.NUM_SCALES}; it must be at least 2 with "
                "MODEL.SMCA.ENCODER.NAME DepthwiseEncoder"
            )
        return {
            "num_layers": smca.ENCODER.NUM_LAYERS,
            "num_scales": smca.NUM_SCALES,
            "dim": smca.HIDDEN_DIM,
            "ffn_dim": smca.DIM_FEEDFORWARD,
            "kernel_size": smca.ENCODER.KERNEL_SIZE,
            "dropout": smca.DROPOUT,
        }

    def forward(self, memory: Memory) -> Memory:
        """
        Returns:
            S scales. The first is the finest one halved, with the shape, the positions and the
            padding of the second.
        """
        for block in self.blocks:
            memory = block(memory)
        finest = self.reduce(memory.maps(memory.tokens)[0]).flatten(2).transpose(1, 2)
        length = memory.lengths[0]
        second = slice(length, length + memory.lengths[1])

        def halve(x: Tensor) -> Tensor:
            return torch.cat((x[:, second], x[:, length:]), dim=1)

        return replace(
            memory,
            tokens=torch.cat((finest, memory.tokens[:, length:]), dim=1),
            positions=halve(memory.positions),
            shapes=memory.shapes[1:2] + memory.shapes[1:],
            strides=memory.strides[1:2] + memory.strides[1:],
            valid_sizes=torch.cat((memory.valid_sizes[:, 1:2], memory.valid_sizes[:, 1:]), dim=1),
            padding=None if memory.padding is None else halve(memory.padding),
        )
