"""Deformable attention against plain indexing in float64; encoder and decoder against its rules."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from smca.modeling.deformable import (
    DeformableAttention,
    DeformableDecoder,
    DeformableEncoder,
    cell_middles,
)
from smca.modeling.memory import Memory, valid_cells, valid_map_sizes

B, N, C, H, K = 2, 5, 16, 4, 3
STRIDES, SIZES = (16, 32), ((96, 70), (65, 144))
SHAPES = ((6, 9), (3, 5))
SMALL = {"num_scales": len(STRIDES), "dim": C, "num_heads": H, "num_points": K, "ffn_dim": 24}


def make_memory(sizes=SIZES, strides=STRIDES, shapes=SHAPES, dim=C, dtype=None) -> Memory:
    """Random tokens, in the padding too."""
    length = sum(rows * columns for rows, columns in shapes)
    masks = []
    for (rows, columns), stride in zip(shapes, strides, strict=True):
        mask = torch.ones(len(sizes), rows, columns, dtype=torch.bool)
        for image, size in zip(mask, sizes, strict=True):
            h, w = valid_cells(size, stride)
            image[:h, :w] = False
        masks.append(mask.flatten(1))
    padding = torch.cat(masks, 1)
    return Memory(
        tokens=torch.randn(len(sizes), length, dim, dtype=dtype),
        positions=torch.randn(len(sizes), length, dim, dtype=dtype),
        shapes=tuple(shapes),
        strides=tuple(strides),
        valid_sizes=valid_map_sizes(sizes, strides, "cpu"),
        padding=padding if padding.any() else None,
    )


def alone(memory: Memory, image: int) -> Memory:
    """One image of a batch, cut out of its padding."""
    inside = ~memory.padding[image]
    valid_sizes = memory.valid_sizes[image : image + 1]
    return replace(
        memory,
        tokens=memory.tokens[image, inside][None],
        positions=memory.positions[image, inside][None],
        shapes=tuple((int(h), int(w)) for w, h in valid_sizes[0].ceil()),
        valid_sizes=valid_sizes,
        padding=None,
    )


def randomised(module: nn.Module, std: float = 0.3) -> nn.Module:
    """The module with other weights than it starts with, many of which are zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def bilinear(cells: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``cells`` (rows, columns, d) at x, y, where cell (i, j) has its middle at (j, i)."""
    left, top = math.floor(x.item()), math.floor(y.item())
    out = torch.zeros(cells.shape[-1], dtype=cells.dtype)
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < cells.shape[0] and 0 <= j < cells.shape[1]:
                out = out + cells[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return out


def plain_attention(attention, query, reference, memory):
    """One image, query, head, scale and point at a time, on each image cut out of its padding."""
    heads, scales, points = H, len(memory.shapes), K
    outs = []
    for b in range(len(query)):
        image = alone(memory, b)
        values = attention.value_proj(image.tokens[0]).split(image.lengths)
        for q, place in zip(query[b], reference[b], strict=True):
            offsets = attention.sampling_offsets(q).view(heads, scales, points, 2)
            logits = attention.attention_weights(q).view(heads, scales * points)
            weights = logits.softmax(-1).view(heads, scales, points)
            out = torch.zeros(heads, C // heads, dtype=query.dtype)
            for s, (rows, columns) in enumerate(image.shapes):
                cells = values[s].view(rows, columns, heads, -1)
                for h in range(heads):
                    for k in range(points):
                        dx, dy = offsets[h, s, k]
                        x, y = place[0] + dx / columns, place[1] + dy / rows
                        if len(place) == 4:
                            x = place[0] + dx * place[2] * 0.5 / points
                            y = place[1] + dy * place[3] * 0.5 / points
                        found = bilinear(cells[:, :, h], x * columns - 0.5, y * rows - 0.5)
                        out[h] = out[h] + weights[h, s, k] * found
            outs.append(attention.output_proj(out.flatten()))
    return torch.stack(outs).view_as(query)


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
def test_attention_and_its_gradients_are_those_of_plain_indexing(numbers):
    torch.manual_seed(0)
    options = {"dim": C, "num_heads": H, "num_scales": len(SHAPES), "num_points": K}
    attention = randomised(DeformableAttention(**options)).double()
    memory = make_memory(dtype=torch.float64)
    query = torch.randn(B, N, C, dtype=torch.float64)
    reference = torch.rand(B, N, numbers, dtype=torch.float64)
    inputs = [memory.tokens, query, reference]
    for tensor in inputs:
        tensor.requires_grad_()
    inputs += attention.parameters()

    found = attention(query, memory, reference, memory.map_sizes)
    expected = plain_attention(attention, query, reference, memory)
    assert_close(found, expected)
    direction = torch.randn_like(found)
    assert_close(
        torch.autograd.grad((found * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
    )


def test_heads_start_looking_around_in_a_square():
    attention = DeformableAttention(dim=32, num_heads=8, num_scales=4, num_points=4)
    offsets = attention.sampling_offsets(torch.randn(32)).view(8, 4, 4, 2)
    square = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    for scale in range(4):
        for k in range(4):
            assert_close(offsets[:, scale, k], (k + 1) * torch.tensor(square).float())
    assert not attention.attention_weights(torch.randn(32)).any()


def test_middles_are_fractions_of_each_image():
    memory = make_memory()
    middles = cell_middles(memory.shapes, memory.map_sizes)
    assert middles.shape == (B, sum(memory.lengths), 2)
    # The first image is 6 x 5 cells of 16 pixels and 3 x 3 of 32, in maps of 9 and 5 columns.
    assert_close(middles[0, 9 + 2], torch.tensor([2.5 / 5, 1.5 / 6]))
    assert_close(middles[0, 6 * 9 + 2 * 5], torch.tensor([0.5 / 3, 2.5 / 3]))
    inside = ((middles > 0) & (middles < 1)).all(-1)
    assert torch.equal(inside, ~memory.padding)


def test_encoder_and_decoder_are_their_equations(tolerance):
    torch.manual_seed(0)
    memory = make_memory()
    encoder = randomised(DeformableEncoder(num_layers=1, **SMALL)).eval()
    decoder = randomised(DeformableDecoder(num_layers=1, num_queries=N, **SMALL)).eval()
    with torch.no_grad():
        block, middles = encoder.blocks[0], cell_middles(memory.shapes, memory.map_sizes)
        with_pos = memory.tokens + memory.positions
        x = block.norm1(memory.tokens + plain_attention(block.attention, with_pos, middles, memory))
        x = block.norm2(x + block.ffn(x))
        inside = ~memory.padding
        assert_close(encoder(memory).tokens[inside], x[inside], **tolerance)

        layer = decoder.layers[0]
        position, x = decoder.query_embed.weight.expand(B, -1, -1).split(C, dim=-1)
        reference = decoder.sampling_reference(position).sigmoid()
        x = layer.norm1(x + layer.self_attention(x, position))
        x = layer.norm2(x + plain_attention(layer.co_attention, x + position, reference, memory))
        x = layer.norm3(x + layer.ffn(x))
        assert_close(decoder(memory)[0], x[None], **tolerance)


@pytest.mark.parametrize("refine", [False, True], ids=["points", "boxes"])
def test_padding_leaves_no_trace(refine):
    torch.manual_seed(0)
    encoder = randomised(DeformableEncoder(num_layers=2, **SMALL)).eval()
    decoder = DeformableDecoder(num_layers=3, num_queries=N, refine=refine, **SMALL)
    decoder = randomised(decoder).eval()
    heads = nn.ModuleList(nn.Linear(C, 4) for _ in range(3))
    arguments = (lambda hidden, layer: heads[layer](hidden),) if refine else ()
    memory = make_memory()
    with torch.no_grad():
        batched = encoder(memory)
        hidden, reference = decoder(batched, *arguments)
        for b in range(B):
            single = encoder(alone(memory, b))
            inside = ~memory.padding[b]
            assert_close(batched.tokens[b, inside], single.tokens[0], atol=1e-5, rtol=1e-5)
            expected, at = decoder(single, *arguments)
            assert_close(hidden[:, b : b + 1], expected, atol=1e-5, rtol=1e-5)
            assert_close(reference.select(-3, b), at.select(-3, 0), atol=1e-5, rtol=1e-5)


def test_without_refinement_all_layers_look_around_the_same_points():
    torch.manual_seed(0)
    decoder = randomised(DeformableDecoder(num_layers=3, num_queries=N, dropout=0.0, **SMALL))
    looked = record_references(decoder)
    memory = make_memory()
    hidden, reference = decoder(memory)
    assert (hidden.shape, reference.shape) == ((3, B, N, C), (B, N, 2))
    assert_close(reference[0], decoder.sampling_reference(decoder.query_embed.weight[:, :C]))
    assert len(looked) == 3
    for place in looked:
        assert_close(place, reference.sigmoid())
    assert not decoder.refines
    assert decoder.head_options == {"zero_boxes": True, "size_bias": -2.0, "num_sets": 1}


def record_references(decoder) -> list:
    """Filled with the references that the layers' co-attention gets."""
    looked = []
    for layer in decoder.layers:
        layer.co_attention.register_forward_pre_hook(lambda _, inputs: looked.append(inputs[3][0]))
    return looked


def test_refinement_looks_around_the_box_of_the_layer_before():
    torch.manual_seed(0)
    options = {"num_layers": 3, "num_queries": N, "dropout": 0.0, "attention_dropout": 0.0}
    decoder = randomised(DeformableDecoder(refine=True, **options, **SMALL))
    looked = record_references(decoder)
    heads = nn.ModuleList(nn.Linear(C, 4) for _ in range(3))

    def box_offsets(hidden, layer):
        return heads[layer](hidden)

    memory = make_memory()
    hidden, references = decoder(memory, box_offsets)
    assert references.shape == (3, B, N, 4)
    points = decoder.sampling_reference(decoder.query_embed.weight[:, :C])
    assert_close(references[0], F.pad(points, (0, 2)).expand(B, -1, -1))
    assert_close(looked[0], points.sigmoid().expand(B, -1, -1))
    for layer in range(2):
        boxes = (box_offsets(hidden[layer], layer) + references[layer]).sigmoid()
        assert_close(looked[layer + 1], boxes)
        assert_close(references[layer + 1].sigmoid(), boxes)
    # A layer's boxes train this layer alone; the first ones' points train their predictor.
    gradients = torch.autograd.grad(references[1:].sum(), [*heads.parameters()], allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    assert torch.autograd.grad(references[0].sum(), decoder.sampling_reference.weight)[0].any()
    assert decoder.refines
    assert decoder.head_options == {"zero_boxes": True, "size_bias": -2.0, "num_sets": 3}

    last, reference = decoder.eval()(memory, box_offsets)
    assert_close((last, reference), (hidden[-1:], references[-1:]))


def test_places_are_float32_under_autocast(monkeypatch):
    torch.manual_seed(0)
    attention = DeformableAttention(dim=C, num_heads=H, num_scales=len(SHAPES), num_points=K)
    randomised(attention)
    memory = make_memory()
    arguments = torch.randn(B, N, C), memory, torch.rand(B, N, 2), memory.map_sizes
    grids, original = [], F.grid_sample

    def spy(maps, grid, **options):
        grids.append(grid)
        return original(maps, grid, **options)

    monkeypatch.setattr(F, "grid_sample", spy)
    expected = attention(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(*arguments)
    assert len(grids) == 2 * len(SHAPES)  # one call a scale
    for full, half in zip(grids[:2], grids[2:], strict=True):
        assert torch.equal(full, half)
    assert_close(found.float(), expected, atol=0.02 * expected.abs().max().item(), rtol=0)


class Largest(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_nothing_grows_with_queries_times_keys():
    memory = make_memory(sizes=((640, 800),), strides=(8,), shapes=((80, 100),))
    encoder = DeformableEncoder(num_layers=1, **(SMALL | {"num_scales": 1}))
    with Largest() as largest:
        encoder(memory).tokens.sum().backward()
    tokens = 80 * 100
    assert tokens * C <= largest.numel <= tokens * C * max(K, 24 // C + 1)
