"""Encoder and neck against torch's own attention and plain operations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from smca.modeling.encoder import IntraMultiEncoder
from smca.modeling.memory import Memory, valid_map_sizes
from smca.modeling.neck import Neck
from smca.modeling.position_encoding import sine_positions

B, C, H, S = 2, 32, 4, 3
SHAPES, STRIDES, SIZES = ((6, 8), (3, 4), (2, 2)), (16, 32, 64), ((96, 128), (65, 100))


def torch_attention(ours, scales):
    """torch's multi-head attention with the weights of each scale in turn."""

    def make(scale):
        parts = [ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj]
        q, k, v, out = (p[scale] if isinstance(p, nn.ModuleList) else p for p in parts)
        theirs = nn.MultiheadAttention(C, H, batch_first=True)
        theirs.in_proj_weight.data = torch.cat([q.weight, k.weight, v.weight]).data
        theirs.in_proj_bias.data = torch.cat([q.bias, k.bias, v.bias]).data
        theirs.out_proj.load_state_dict(out.state_dict())
        return theirs

    return [make(scale) for scale in range(scales)]


def plain_block(block, memory):
    """A block whose weights all scales share, by torch's attention."""
    attention = torch_attention(block.attention, S)
    x, with_pos = memory.tokens, memory.tokens + memory.positions
    if block.attention.kind == "multi":
        out = attention[0](with_pos, with_pos, x, key_padding_mask=memory.padding)[0]
    else:
        parts = zip(
            attention,
            with_pos.split(memory.lengths, 1),
            x.split(memory.lengths, 1),
            memory.padding.split(memory.lengths, 1),
            strict=True,
        )
        out = torch.cat([a(p, p, v, key_padding_mask=mask)[0] for a, p, v, mask in parts], 1)
    x = block.norm1(x + out)
    hidden = []
    for scale, tokens in enumerate(x.split(memory.lengths, 1)):
        ffn = block.ffn[scale] if isinstance(block.ffn, nn.ModuleList) else block.ffn
        hidden.append(F.linear(F.relu(ffn[0](tokens)), ffn[3].weight, ffn[3].bias))
    return memory.with_tokens(block.norm2(x + torch.cat(hidden, 1)))


def make_memory():
    torch.manual_seed(0)
    masks = torch.zeros(B, sum(h * w for h, w in SHAPES), dtype=torch.bool)
    start = 0
    for (rows, columns), stride in zip(SHAPES, STRIDES, strict=True):
        for image, (h, w) in enumerate(SIZES):
            inside = torch.zeros(rows, columns, dtype=torch.bool)
            inside[: -(-h // stride), : -(-w // stride)] = True
            masks[image, start : start + rows * columns] = ~inside.flatten()
        start += rows * columns
    return Memory(
        tokens=torch.randn(B, masks.shape[1], C),
        positions=torch.randn(B, masks.shape[1], C),
        shapes=SHAPES,
        strides=STRIDES,
        valid_sizes=valid_map_sizes(SIZES, STRIDES, "cpu"),
        padding=masks,
    )


@pytest.mark.parametrize(
    ("blocks", "share"), [(["intra", "multi"], True), (["intra", "intra"], False)]
)
def test_blocks_are_torchs_attention(blocks, share, tolerance):
    memory = make_memory()
    encoder = IntraMultiEncoder(
        blocks=blocks,
        num_scales=S,
        dim=C,
        num_heads=H,
        ffn_dim=48,
        share_attention=share,
        share_ffn=share,
    ).eval()
    expected = memory
    with torch.no_grad():
        for block in encoder.blocks:
            expected = plain_block(block, expected)
        found = encoder(memory).tokens
    inside = ~memory.padding
    assert_close(found[inside], expected.tokens[inside], **tolerance)


def test_a_multi_block_without_sharing_projects_each_scale_by_itself(tolerance):
    memory = make_memory()
    encoder = IntraMultiEncoder(
        blocks=["multi"], num_scales=S, dim=C, num_heads=H, ffn_dim=48, share_attention=False
    ).eval()
    attention = encoder.blocks[0].attention
    with_pos = memory.tokens + memory.positions

    def project(layers, x):
        scales = zip(layers, x.split(memory.lengths, 1), strict=True)
        x = torch.cat([layer(tokens) for layer, tokens in scales], 1)
        return x.unflatten(-1, (H, -1)).transpose(1, 2)

    query, key = project(attention.q_proj, with_pos), project(attention.k_proj, with_pos)
    logits = query @ key.mT / (C // H) ** 0.5
    weights = logits.masked_fill(memory.padding[:, None, None], -torch.inf).softmax(-1)
    out = (weights @ project(attention.v_proj, memory.tokens)).transpose(1, 2).flatten(2)
    scales = zip(attention.out_proj, out.split(memory.lengths, 1), strict=True)
    expected = torch.cat([layer(tokens) for layer, tokens in scales], 1)
    inside = ~memory.padding
    assert_close(attention(memory)[inside], expected[inside], **tolerance)


def test_recomputing_keeps_less_and_changes_nothing():
    """With dropout: what is computed again draws the same numbers."""
    kept, gradients = {}, {}
    for recompute in ("none", "multi", "all"):
        memory = make_memory()
        memory.tokens.requires_grad = True
        encoder = IntraMultiEncoder(
            blocks=["intra", "multi"],
            num_scales=S,
            dim=C,
            num_heads=H,
            ffn_dim=48,
            recompute=recompute,
        )
        sizes = []

        def pack(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = encoder.train()(memory).tokens
        kept[recompute] = sum(sizes)
        out.square().sum().backward()
        gradients[recompute] = memory.tokens.grad
    assert kept["all"] < 0.3 * kept["none"] and kept["multi"] < 0.7 * kept["none"]
    assert_close(gradients["multi"], gradients["none"], rtol=0, atol=0)
    assert_close(gradients["all"], gradients["none"], rtol=0, atol=0)


def test_recomputed_blocks_keep_the_random_state_of_their_device(monkeypatch):
    """torch keeps that of the devices of the tensors it is given; a GPU's masks are drawn there."""
    given = []

    def record(function, *args, **options):
        given.extend(tree_leaves(args))
        return checkpoint(function, *args, **options)

    monkeypatch.setattr("smca.modeling.encoder.checkpoint", record)
    memory = make_memory()
    options = {"num_scales": S, "dim": C, "num_heads": H, "ffn_dim": 48, "recompute": "all"}
    IntraMultiEncoder(blocks=["intra", "multi"], **options).train()(memory)
    assert [type(each) for each in given] == [torch.Tensor] * 2
    assert given[0] is memory.tokens


def test_neck_makes_the_papers_three_scales(tolerance):
    torch.manual_seed(0)
    neck = Neck(
        in_features=["res4", "res5"],
        in_channels=[8, 16],
        in_strides=[16, 32],
        num_scales=3,
        dim=C,
    )
    features = {"res4": torch.randn(1, 8, 6, 8), "res5": torch.randn(1, 16, 3, 4)}
    memory = neck(features, [(96, 128)])
    f16, f32, f64 = neck.projections
    expected = [
        F.conv2d(features["res4"], f16.weight, f16.bias),
        F.conv2d(features["res5"], f32.weight, f32.bias),
        F.conv2d(features["res5"], f64.weight, f64.bias, stride=2, padding=1),
    ]
    assert (memory.shapes, memory.strides) == (SHAPES, STRIDES)
    assert memory.padding is None
    tokens = torch.cat([scale.flatten(2).mT for scale in expected], 1)
    assert_close(memory.tokens, tokens, **tolerance)
    # The level embedding is in the positions, not in the tokens.
    bare = memory.positions - torch.cat(
        [neck.level_embed[s].expand(1, length, -1) for s, length in enumerate(memory.lengths)], 1
    )
    wanted = [
        sine_positions([shape], shape, C, torch.device("cpu"), dtype=tokens.dtype)
        for shape in SHAPES
    ]
    assert_close(bare, torch.cat(wanted, 1), **tolerance)
