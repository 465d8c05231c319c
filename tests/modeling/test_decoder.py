"""The modulated co-attention of a whole decoder layer against one written with plain loops."""

import pytest
import torch
from torch.testing import assert_close

from smca.modeling.memory import Memory, valid_map_sizes
from smca.modeling.smca_decoder import ModulatedCoAttention, SMCADecoder
from smca.modeling.spatial_prior import Places, SpatialPrior

B, N, C, H = 2, 7, 32, 4
SHAPES, STRIDES = ((6, 9), (3, 5)), (16, 32)
SIZES = ((96, 130), (70, 144))


def make_memory(padded: bool) -> Memory:
    length = sum(rows * columns for rows, columns in SHAPES)
    padding = None
    if padded:
        masks = []
        for (rows, columns), stride in zip(SHAPES, STRIDES, strict=True):
            mask = torch.ones(B, rows, columns, dtype=torch.bool)
            for i, (h, w) in enumerate(SIZES):
                mask[i, : -(-h // stride), : -(-w // stride)] = False
            masks.append(mask.flatten(1))
        padding = torch.cat(masks, 1)
    return Memory(
        tokens=torch.randn(B, length, C),
        positions=torch.randn(1, length, C),
        shapes=SHAPES,
        strides=STRIDES,
        valid_sizes=valid_map_sizes(SIZES, STRIDES, "cpu"),
        padding=padding,
    )


def plain_co_attention(attention, prior_module, query, observed, reference, memory):
    """Eqs. 3-9 for one image, query, head and scale at a time."""
    prior, heads = prior_module, attention.num_heads
    shared = prior.num_gaussians == 1
    out = torch.zeros(B, N, C)
    for b in range(B):
        for n in range(N):
            o = observed[b, n]
            alpha = torch.ones(len(SHAPES))
            if prior.selection is not None:
                alpha = prior.selection(o).softmax(-1)
            center = reference[b, n].sigmoid()
            q = attention.q_proj(query[b, n]).view(heads, -1)
            start = 0
            for s, ((rows, columns), stride) in enumerate(zip(SHAPES, STRIDES, strict=True)):
                stop = start + rows * columns
                tokens, with_pos = (
                    x[b if len(x) > 1 else 0, start:stop]
                    for x in (memory.tokens, memory.tokens + memory.positions)
                )
                padding = None if memory.padding is None else memory.padding[b, start:stop]
                start = stop
                k_proj, v_proj = attention.k_proj, attention.v_proj
                if isinstance(k_proj, torch.nn.ModuleList):
                    k_proj, v_proj = k_proj[s], v_proj[s]
                k = k_proj(with_pos).view(-1, heads, C // heads)
                v = v_proj(tokens).view(-1, heads, C // heads)
                h_image, w_image = SIZES[b]
                for h in range(heads):
                    g = s if shared else s * heads + h
                    cx, cy = center[0] * w_image / stride, center[1] * h_image / stride
                    if prior.offsets is not None:
                        dx, dy = prior.offsets(o).view(-1, 2)[g]
                        cx, cy = cx + dx, cy + dy
                    xx = yy = torch.tensor(1.0)
                    xy = torch.tensor(0.0)
                    if prior.kind == "single":
                        xx = yy = prior.scales(o)[g] ** 2
                    elif prior.kind == "independent":
                        xx, yy = prior.scales(o).view(-1, 2)[g] ** 2
                    elif prior.kind == "oriented":
                        l11, l22, l21 = prior.scales(o).view(-1, 3)[g]
                        lower = torch.stack((l11, torch.zeros(()), l21, l22)).view(2, 2)
                        matrix = lower @ lower.T
                        xx, yy, xy = matrix[0, 0], matrix[1, 1], matrix[0, 1]
                    j = torch.arange(columns).repeat(rows)
                    i = torch.arange(rows).repeat_interleave(columns)
                    log_g = -(
                        xx * (j - cx) ** 2 + yy * (i - cy) ** 2 + 2 * xy * (j - cx) * (i - cy)
                    ) * (stride / 32 / prior.beta)
                    logits = k[:, h] @ q[h] / (C // heads) ** 0.5 + log_g
                    if padding is not None:
                        logits[padding] = -torch.inf
                    attended = alpha[s] * (logits.softmax(0) @ v[:, h])
                    out[b, n, h * C // heads : (h + 1) * C // heads] += attended
    return attention.out_proj(out)


@pytest.mark.parametrize("kind", ["fixed", "single", "independent", "oriented"])
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize(("selection", "key_sets", "padded"), [(True, 1, True), (False, 2, False)])
def test_co_attention(kind, per_head, selection, key_sets, padded, tolerance):
    torch.manual_seed(0)
    memory = make_memory(padded)
    attention = ModulatedCoAttention(dim=C, num_heads=H, key_sets=key_sets)
    prior = SpatialPrior(
        dim=C,
        num_heads=H,
        num_scales=2,
        per_head=per_head,
        kind=kind,
        scale_selection=selection,
    )
    if prior.scales is not None:
        torch.nn.init.normal_(prior.scales.weight, std=0.1)
    query, target, position = torch.randn(3, B, N, C)
    reference = torch.randn(B, N, 2)
    with torch.no_grad():
        places = Places.of(reference, memory, oriented=kind == "oriented")
        found = prior(target, position, places)
        out = attention(query, torch.zeros_like(query), memory, found)
        observed = prior.norm(target + position)
        expected = plain_co_attention(attention, prior, query, observed, reference, memory)
    assert_close(out, expected, **tolerance)


def test_gaussians_all_start_with_the_same_width():
    for kind in ("single", "independent", "oriented"):
        prior = SpatialPrior(dim=C, num_heads=H, num_scales=2, kind=kind)
        target, position = torch.randn(2, B, N, C)
        places = Places.of(torch.zeros(B, N, 2), make_memory(False), oriented=kind == "oriented")
        found = prior(target, position, places)
        precision = found.gaussians.precision
        assert_close(precision, torch.tensor([1.0, 1.0, 0.0]).expand_as(precision))


def test_weights_are_those_the_kernel_uses():
    torch.manual_seed(0)
    memory = make_memory(True)
    attention = ModulatedCoAttention(dim=C, num_heads=H)
    places = Places.of(torch.randn(B, N, 2), memory, oriented=False)
    prior = SpatialPrior(dim=C, num_heads=H, num_scales=2)(*torch.randn(2, B, N, C), places)
    query = torch.randn(B, N, C)
    nowhere = torch.zeros_like(query)
    _, _, value = attention.project(query, nowhere, memory)
    out = 0
    for scale, (weights, v) in enumerate(
        zip(
            attention.weights(query, nowhere, memory, prior),
            value.split(memory.lengths, dim=2),
            strict=True,
        )
    ):
        out = out + prior.selection[:, None, :, scale, None] * (weights @ v)
    out = attention.out_proj(attention.merge_heads(out))
    assert_close(out, attention(query, nowhere, memory, prior), atol=1e-5, rtol=1e-4)


def test_reference_comes_from_the_first_layer_and_is_reused():
    torch.manual_seed(0)
    decoder = SMCADecoder(
        num_layers=2, num_queries=N, num_scales=2, dim=C, num_heads=H, ffn_dim=16, dropout=0
    ).train()
    hidden, reference = decoder(make_memory(False))
    assert hidden.shape == (2, B, N, C) and reference.shape == (B, N, 2)
    first = decoder.layers[0].prior.norm(decoder.query_embed.weight)
    assert_close(reference, decoder.center(first).expand(B, -1, -1))
    assert len(decoder.eval()(make_memory(False))[0]) == 1
