"""TSP-RCNN's box head: an encoder whose tokens are the proposals of an image (arXiv 2011.10881).

Shapes: R proposals of all B images, P of the image with the most, C channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from ..errors import ConfigError
from ..modeling.encoder import IntraMultiEncoder
from ..modeling.layers import compile_layers, linear
from ..modeling.memory import Memory, numbers_on
from ..modeling.position_encoding import sine_embedding
from ..structures import Size

# The numbers of a box that its position encodes: centre, sides and corners.
_NUMBERS = 8


def box_positions(boxes: Tensor, size: Size, dim: int) -> Tensor:
    """Encode the centre, the sides and the corners of boxes, in fractions of the image.

    Args:
        boxes: (R, 4), xyxy in pixels.
        size: (h, w) of the image in pixels, without padding.
        dim: C, a multiple of 16.

    Returns:
        (R, C): C / 8 interleaved sines and cosines of each of cx, cy, w, h, x1, y1, x2, y2.
    """
    height, width = (int(side) for side in size)  # in a trace they are tensors
    corners = boxes / numbers_on(boxes.device, [width, height, width, height])
    numbers = torch.cat((box_convert(corners, "xyxy", "cxcywh"), corners), dim=1)
    return sine_embedding(numbers * (2 * math.pi), dim // _NUMBERS).flatten(1)


class TSPBoxHead(nn.Module):
    """Turns the pooled maps of proposals into tokens, and encodes the tokens of each image."""

    def __init__(self, *, in_features: int, dim: int, encoder: IntraMultiEncoder):
        """
        Args:
            in_features: numbers of a pooled map.
            dim: C.
            encoder: of one scale; SOLVER.OPTIMIZER "SGD+AdamW" finds it by its attribute's name.
        """
        super().__init__()
        self.dim = dim
        self.input_proj = linear(in_features, dim)
        self.position_proj = linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.encoder = encoder

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        smca = cfg.MODEL.SMCA
        if smca.HIDDEN_DIM % (2 * _NUMBERS) or smca.HIDDEN_DIM % smca.NHEADS:
            raise ConfigError(
                f"MODEL.SMCA.HIDDEN_DIM is {smca.HIDDEN_DIM}; with TSPROIHeads it must be a "
                f"multiple of {2 * _NUMBERS} and of MODEL.SMCA.NHEADS ({smca.NHEADS})"
            )
        encoder = IntraMultiEncoder(**IntraMultiEncoder.from_config(cfg) | {"num_scales": 1})
        if smca.COMPILE:
            compile_layers(encoder)
        return {
            "in_features": input_shape.channels * input_shape.height * input_shape.width,
            "dim": smca.HIDDEN_DIM,
            "encoder": encoder,
        }

    def forward(self, pooled: Tensor, boxes: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
        """Encode proposals.

        Args:
            pooled: (R, channels, rows, columns), image after image.
            boxes: of each image, xyxy in pixels.
            sizes: (h, w) of each image in pixels, without padding.

        Returns:
            (R, C).
        """
        counts = [int(image.shape[0]) for image in boxes]
        images = zip(boxes, sizes, strict=True)
        positions = torch.cat([box_positions(*image, self.dim) for image in images])
        tokens = self.input_proj(pooled.flatten(1)) + self.position_proj(positions)
        encoded = self.encoder(_memory(self.norm(tokens), positions, counts)).tokens
        return torch.cat([image[:n] for image, n in zip(encoded, counts, strict=True)])


def _memory(tokens: Tensor, positions: Tensor, counts: Sequence[int]) -> Memory:
    """Return tokens and positions (R, C), ``counts`` of each image, as (B, P, C) with padding."""
    # Without any proposal there is one of padding: all parameters then have gradients, of zero.
    longest, device = max(*counts, 1), tokens.device

    def padded(x: Tensor) -> Tensor:
        rows = pad_sequence(x.split(counts), batch_first=True)
        return F.pad(rows, (0, 0, 0, longest - rows.shape[1]))

    padding = None
    if any(number < longest for number in counts):
        number = numbers_on(device, counts, torch.int64)
        padding = torch.arange(longest, device=device) >= number[:, None]
    return Memory(
        tokens=padded(tokens),
        positions=padded(positions),
        shapes=((longest, 1),),
        strides=(1,),
        valid_sizes=numbers_on(device, [[(1, number)] for number in counts]),
        padding=padding,
    )
