"""Conditional DETR's decoder against one written for a single image, query and head at a time."""

import math

import pytest
import torch
from torch.testing import assert_close

from smca.modeling.conditional import ConditionalDecoder
from smca.modeling.memory import Memory, valid_map_sizes

N, C, H = 5, 32, 4
D = C // H


def make_memory(batch=1):
    return Memory(
        tokens=torch.randn(batch, 12, C),
        positions=torch.randn(1, 12, C),
        shapes=((3, 4),),
        strides=(32,),
        valid_sizes=valid_map_sizes([(96, 128)] * batch, (32,), "cpu"),
        padding=None,
    )


def make_decoder(**options):
    decoder = ConditionalDecoder(
        **{"num_layers": 3, "num_queries": N, "dim": C, "num_heads": H, "ffn_dim": 16},
        **{"dropout": 0, "attention_dropout": 0, **options},
    )
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder


def sines(point):
    """The sine embedding of a point x, y in [0, 1]: y first, sine and cosine in turn."""
    numbers = []
    for coordinate in (point[1], point[0]):
        for pair in range(C // 4):
            angle = coordinate * 2 * math.pi / 10000 ** (2 * pair / (C // 2))
            numbers += [angle.sin(), angle.cos()]
    return torch.stack(numbers)


def plain_attention(query, key, value, scale):
    """One query (e,), keys (L, e), values (L, d)."""
    return (key @ query * scale).softmax(0) @ value


def plain_decoder(decoder, kind, tokens, positions):
    embed, x = decoder.query_embed.weight, torch.zeros(N, C)
    points = decoder.reference(embed).sigmoid()
    p_s = torch.stack([sines(point) for point in points])
    outputs = []
    for number, layer in enumerate(decoder.layers):
        own, f = layer.self_attention, x
        q = own.q_proj(x) + own.q_pos(embed)
        k = own.k_proj(x) + own.k_pos(embed)
        v = own.v_proj(x)
        heads = [slice(h * D, (h + 1) * D) for h in range(H)]
        out = torch.stack(
            [
                torch.cat([plain_attention(q[n, h], k[:, h], v[:, h], D**-0.5) for h in heads])
                for n in range(N)
            ]
        )
        x = layer.norm1(x + own.out_proj(out))
        spatial = {
            "CSQ": lambda f=f: p_s * decoder.transform(f),
            "CSQ-I": lambda x=x: p_s * decoder.transform(x),
            "CSQ-T": lambda f=f: decoder.transform(f),
            "CSQ-C": lambda f=f: f,
            "CSQ-P": lambda: p_s,
        }
        p_q = p_s if number == 0 and kind in ("CSQ", "CSQ-I") else spatial[kind]()
        co = layer.co_attention
        c_q, c_k, p_k = co.q_proj(x), co.k_proj(tokens), co.k_pos(positions)
        if number == 0:
            c_q, c_k = c_q + co.q_pos(embed), c_k + p_k
        p_q, v = co.q_sine(p_q), co.v_proj(tokens)
        out = torch.stack(
            [
                torch.cat(
                    [
                        plain_attention(
                            torch.cat((c_q[n, h], p_q[n, h])),
                            torch.cat((c_k[:, h], p_k[:, h]), dim=1),
                            v[:, h],
                            (2 * D) ** -0.5,
                        )
                        for h in heads
                    ]
                )
                for n in range(N)
            ]
        )
        x = layer.norm2(x + co.out_proj(out))
        x = layer.norm3(x + layer.ffn(x))
        outputs.append(decoder.norm(x))
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", ["CSQ", "CSQ-C", "CSQ-T", "CSQ-P", "CSQ-I"])
def test_all_layers(kind, tolerance):
    torch.manual_seed(0)
    decoder, memory = make_decoder(spatial_query=kind), make_memory()
    with torch.no_grad():
        hidden, reference = decoder.train()(memory)
        expected = plain_decoder(decoder, kind, memory.tokens[0], memory.positions[0])
    assert_close(hidden[:, 0], expected, atol=2 * tolerance["atol"], rtol=tolerance["rtol"])
    assert_close(reference[0], decoder.reference(decoder.query_embed.weight))
    idle = isinstance(decoder.transform, torch.nn.Identity)
    assert idle == (kind in ("CSQ-C", "CSQ-P"))


def test_reference_points_as_parameters():
    decoder = make_decoder(learned_reference=True)
    assert decoder.reference.weight.shape == (N, 2)
    _, reference = decoder(make_memory(batch=2))
    assert_close(reference, decoder.reference.weight.expand(2, -1, -1))


def test_weights_are_those_the_kernel_uses():
    torch.manual_seed(0)
    decoder, memory = make_decoder(), make_memory(batch=2)
    attention = decoder.layers[1].co_attention
    target, position, content = torch.randn(3, 2, N, C)
    points = decoder.places(torch.randn(2, N, 2), memory)
    arguments = (target, position, memory, (content, points))
    [weights] = attention.weights(*arguments)
    value = attention.split_heads(attention.v_proj(memory.tokens))
    out = attention.out_proj(attention.merge_heads(weights @ value))
    assert_close(out, attention(*arguments), atol=1e-5, rtol=1e-4)
