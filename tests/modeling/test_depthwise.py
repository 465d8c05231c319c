"""The depthwise bidirectional encoder: what reaches what, and what the decoder gets."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from smca.modeling.depthwise import BidirectionalMixer, DepthwiseEncoder
from smca.modeling.memory import Memory, valid_map_sizes

B, C = 2, 8
SIZES = ((120, 160), (117, 150))
SHAPES = ((15, 20), (8, 10), (4, 5), (2, 3))
LENGTHS = [rows * columns for rows, columns in SHAPES]


def make_memory():
    padding = torch.zeros(B, sum(LENGTHS), dtype=torch.bool)
    padding[1, LENGTHS[0] + 5] = True
    return Memory(
        tokens=torch.randn(B, sum(LENGTHS), C),
        positions=torch.randn(1, sum(LENGTHS), C),
        shapes=SHAPES,
        strides=(8, 16, 32, 64),
        valid_sizes=valid_map_sizes(SIZES, (8, 16, 32, 64), "cpu"),
        padding=padding,
    )


def test_neighbouring_scales_are_mixed_in_both_directions(tolerance):
    torch.manual_seed(0)
    mixer, memory = BidirectionalMixer(dim=C, num_scales=4, kernel_size=3), make_memory()
    x = F.linear(
        memory.tokens + memory.positions, mixer.project_in.weight, mixer.project_in.bias
    ).split(LENGTHS, dim=1)
    z = [
        conv(tokens.transpose(1, 2).reshape(B, C, *shape))
        for conv, tokens, shape in zip(mixer.within, x, SHAPES, strict=True)
    ]
    expected = []
    for s in range(4):
        total = z[s]
        if s > 0:
            total = total + mixer.down[s - 1](z[s - 1])
        if s < 3:
            coarser = mixer.up[s](z[s + 1])
            rows, columns = SHAPES[s]
            # Corners lie on corners, as in the grid of grid_sample.
            y, x = torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns)
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
            total = total + F.grid_sample(coarser, grid.expand(B, -1, -1, -1), align_corners=True)
        expected.append(total.flatten(2).transpose(1, 2))
    assert_close(mixer(memory), mixer.project_out(torch.cat(expected, 1)), **tolerance)


def test_the_decoder_gets_the_finest_scale_halved():
    memory = make_memory()
    encoder = DepthwiseEncoder(num_layers=1, num_scales=4, dim=C, ffn_dim=16, dropout=0)
    encoded = encoder(memory)
    assert encoded.shapes == (SHAPES[1], *SHAPES[1:]) and encoded.strides == (16, 16, 32, 64)
    torch.testing.assert_close(encoded.valid_sizes, valid_map_sizes(SIZES, encoded.strides, "cpu"))
    first, second, *_ = encoded.positions.split(encoded.lengths, dim=1)
    assert_close(first, second)
    assert_close(second, memory.positions.split(LENGTHS, dim=1)[1])
    first, second, *_ = encoded.padding.split(encoded.lengths, dim=1)
    assert first[1, 5] and first.sum() == 1 and first.equal(second)
    unpadded = encoder(replace(memory, padding=None))
    assert unpadded.padding is None
    # The other scales go on as they are.
    block = encoder.blocks[0](memory).tokens.split(LENGTHS, dim=1)
    assert_close(encoded.tokens.split(encoded.lengths, dim=1)[1:], tuple(block[1:]))
    assert_close(
        encoded.tokens[:, : LENGTHS[1]].transpose(1, 2).reshape(B, C, *SHAPES[1]),
        encoder.reduce(block[0].transpose(1, 2).reshape(B, C, *SHAPES[0])),
    )
