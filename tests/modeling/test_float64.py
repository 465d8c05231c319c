"""In float64: decoders and heads by their equations, and whole detectors that lose no digit."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from smca.modeling import AnchoredSMCADecoder, build_detector
from smca.modeling.decoder import DETRDecoder
from smca.modeling.heads import DetectionHeads
from smca.modeling.memory import Memory, valid_map_sizes
from smca.modeling.smca_decoder import SMCADecoder

B, N, C, H, FFN = 2, 5, 16, 2, 12
SHAPES, STRIDES, SIZES = ((6, 9), (3, 5)), (16, 32), ((96, 130), (70, 144))
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def float64(request):
    """New tensors and modules are of float64, but for those that say otherwise."""
    if "detector" not in request.node.name:
        torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def make_memory():
    padding = []
    for (rows, columns), stride in zip(SHAPES, STRIDES, strict=True):
        mask = torch.ones(B, rows, columns, dtype=torch.bool)
        for image, (h, w) in zip(mask, SIZES, strict=True):
            image[: math.ceil(h / stride), : math.ceil(w / stride)] = False
        padding.append(mask.flatten(1))
    padding = torch.cat(padding, dim=1)
    return Memory(
        tokens=torch.randn(*padding.shape, C),
        positions=torch.randn(*padding.shape, C),
        shapes=SHAPES,
        strides=STRIDES,
        valid_sizes=valid_map_sizes(SIZES, STRIDES, torch.device("cpu")),
        padding=padding,
    )


def norm(layer, x):
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def affine(layer, x):
    return x @ layer.weight.T + layer.bias


def mlp(layers, x):
    *hidden, last = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer in hidden:
        x = affine(layer, x).clamp(min=0)
    return affine(last, x)


def attention(module, query, key, value, bias):
    """Of all heads, with ``bias`` (B, H or 1, N or 1, L) on the logits; less the projection."""

    def heads(layer, x):
        return affine(layer, x).view(B, -1, H, C // H)

    q, k = heads(module.q_proj, query), heads(module.k_proj, key)
    logits = torch.einsum("bnhd,blhd->bhnl", q, k) / math.sqrt(C // H) + bias
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    out = torch.einsum("bhnl,blhd->bnhd", weights, heads(module.v_proj, value))
    return out.reshape(B, -1, C)


def log_gaussians(prior, observed, points, scale):
    """Eqs. 3-6: (B, H, N, L) of one scale; ``points`` (B, N, 2) in [0, 1]."""
    rows, columns = SHAPES[scale]
    sets = 1 if prior.offsets is None else H
    width, height = (torch.tensor([size[axis] for size in SIZES]) for axis in (1, 0))
    center = points * (torch.stack((width, height), -1) / STRIDES[scale])[:, None]
    center = center[:, :, None].expand(-1, -1, H, -1)
    if prior.offsets is not None:
        center = center + affine(prior.offsets, observed).view(B, N, len(SHAPES), H, 2)[:, :, scale]
    xx = yy = torch.ones(B, N, H)
    xy = torch.zeros(B, N, H)
    if prior.scales is not None:
        numbers = affine(prior.scales, observed).view(B, N, len(SHAPES), sets, -1)[:, :, scale]
        numbers = numbers.expand(-1, -1, H, -1).unbind(-1)
        xx, yy = numbers[0] ** 2, numbers[min(1, len(numbers) - 1)] ** 2
        if prior.kind == "oriented":
            xy, yy = numbers[0] * numbers[2], yy + numbers[2] ** 2
    j = torch.arange(columns).repeat(rows) - center[..., :1]  # (B, N, H, L)
    i = torch.arange(rows).repeat_interleave(columns) - center[..., 1:]
    form = xx[..., None] * j**2 + yy[..., None] * i**2 + 2 * xy[..., None] * i * j
    return (-form * STRIDES[scale] / 32 / prior.beta).transpose(1, 2)


def co_attention(layer, x, position, points, memory, observed):
    """Eqs. 1, 2, 5-9, before the output projection."""
    padding = torch.where(memory.padding, -torch.inf, 0.0)[:, None, None]
    query, key = x + position, memory.tokens + memory.positions
    if points is None:
        return attention(layer.co_attention, query, key, memory.tokens, padding)
    observed = norm(layer.prior.norm, observed)
    alpha = torch.ones(B, N, len(SHAPES))
    if layer.prior.selection is not None:
        logits = affine(layer.prior.selection, observed)
        alpha = logits.exp() / logits.exp().sum(-1, keepdim=True)
    out, start = 0.0, 0
    for scale, (rows, columns) in enumerate(SHAPES):
        keys = slice(start, start + rows * columns)
        bias = log_gaussians(layer.prior, observed, points, scale) + padding[..., keys]
        attended = attention(layer.co_attention, query, key[:, keys], memory.tokens[:, keys], bias)
        out, start = out + alpha[..., scale, None] * attended, keys.stop
    return out


def plain_layer(layer, x, position, points, memory):
    before, own = x, layer.self_attention
    out = attention(own, x + position, x + position, x, 0.0)
    x = norm(layer.norm1, x + affine(own.out_proj, out))
    out = co_attention(layer, x, position, points, memory, before + position)
    x = norm(layer.norm2, x + affine(layer.co_attention.out_proj, out))
    return norm(layer.norm3, x + mlp(layer.ffn, x))


def plain_decoder(decoder, memory):
    position = decoder.query_embed.weight.expand(B, -1, -1)
    x, reference = torch.zeros(B, N, C), None
    if isinstance(decoder, SMCADecoder):
        reference = mlp(decoder.center, norm(decoder.layers[0].prior.norm, position))
    outs = []
    points = None if reference is None else 1 / (1 + (-reference).exp())
    for layer in decoder.layers:
        x = plain_layer(layer, x, position, points, memory)
        outs.append(norm(decoder.norm, x))
    return torch.stack(outs), reference


def sines(numbers):
    """(..., K) in [0, 1]: C / 2 sines and cosines in turns of each."""
    exponents = torch.arange(C // 4) * 2 / (C // 2)
    angles = 2 * math.pi * numbers[..., None] / 10000**exponents
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-3)


def plain_anchored_decoder(decoder, memory, box_head):
    box = decoder.anchors.weight.expand(B, -1, -1)
    x, outs, boxes = torch.zeros(B, N, C), [], []
    for layer in decoder.layers:
        cx, cy, w, h = (1 / (1 + (-box).exp())).unbind(-1)
        position = mlp(decoder.position, sines(torch.stack((cy, cx, w, h), -1)))
        points = torch.stack((cx, cy), -1)
        x = plain_layer(layer, x, position, points, memory)
        outs.append(norm(decoder.norm, x))
        boxes.append(box)
        box = box + mlp(box_head, outs[-1])
    return torch.stack(outs), torch.stack(boxes)


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("kind", ["none", "fixed", "single", "independent", "oriented"])
@pytest.mark.parametrize("per_head", [True, False], ids=["multi", "shared"])
def test_decoders_are_their_equations(kind, per_head):
    """ "none" is DETR's."""
    options = {"num_layers": 3, "num_queries": N, "dim": C, "num_heads": H, "ffn_dim": FFN}
    options |= {"dropout": 0.0, "attention_dropout": 0.0}
    if kind == "none":
        decoder = DETRDecoder(**options)
    else:
        decoder = SMCADecoder(num_scales=2, scale_kind=kind, per_head=per_head, **options)
    decoder, memory = randomised(decoder).train(), make_memory()
    with torch.no_grad():
        (found, reference), (expected, wanted) = decoder(memory), plain_decoder(decoder, memory)
    assert_close(found, expected, **EXACT)
    assert (reference is None) == (kind == "none")
    if reference is not None:
        assert_close(reference, wanted, **EXACT)


@pytest.mark.parametrize("kind", ["fixed", "independent", "oriented"])
@pytest.mark.parametrize("per_head", [True, False], ids=["multi", "shared"])
def test_an_anchored_decoder_is_its_equations(kind, per_head):
    decoder = AnchoredSMCADecoder(
        **{"num_layers": 3, "num_queries": N, "dim": C, "num_heads": H, "ffn_dim": FFN},
        **{"dropout": 0.0, "attention_dropout": 0.0, "num_scales": 2},
        **{"scale_kind": kind, "per_head": per_head},
    )
    decoder, memory = randomised(decoder).train(), make_memory()
    heads = randomised(DetectionHeads(dim=C, num_logits=3))
    with torch.no_grad():
        outputs, boxes, *_ = decoder(memory, heads.box_offsets)
        expected, starts = plain_anchored_decoder(decoder, memory, heads.box_head)
        assert_close(outputs, expected, **EXACT)
        assert_close(boxes, starts, **EXACT)
        offsets = mlp(heads.box_head, expected)
        wanted = 1 / (1 + (-(offsets + starts)).exp())
        assert_close(heads(outputs, boxes).boxes, wanted, **EXACT)


def test_heads_are_their_equations():
    heads = randomised(DetectionHeads(dim=C, num_logits=3))
    hidden, reference = torch.randn(2, B, N, C), torch.randn(B, N, 2)
    with torch.no_grad():
        found, bare = heads(hidden, reference), heads(hidden, None)
        offsets = mlp(heads.box_head, hidden)
        assert_close(found.logits, affine(heads.class_head, hidden), **EXACT)
        assert_close(bare.boxes, 1 / (1 + (-offsets).exp()), **EXACT)
        offsets[..., :2] += reference
        assert_close(found.boxes, 1 / (1 + (-offsets).exp()), **EXACT)
        assert_close(found.centers, 1 / (1 + (-reference).exp()), **EXACT)


DETECTORS = {
    "smca": [],
    "oriented": ["MODEL.SMCA.MODULATION.SCALE", "oriented"],
    "single scale": ["MODEL.SMCA.NUM_SCALES", 1, "MODEL.SMCA.IN_FEATURES", ["res5"]],
    "group norms": ["MODEL.SMCA.NECK.NORM", "GN", "MODEL.RESNETS.NORM", "GN"],
    "depthwise": ["MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder"],
    "anchored": ["MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder"],
    "DETR": ["MODEL.SMCA.DECODER.NAME", "DETRDecoder"],
    "conditional": ["MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"],
    "deformable": [
        *("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder"),
        *("MODEL.SMCA.DECODER.NAME", "DeformableDecoder"),
    ],
}


@pytest.mark.parametrize("name", DETECTORS)
def test_no_part_of_a_detector_computes_in_float32(tiny_config, name):
    """A step of 1e-7 along the gradient changes the outputs by what the gradient says.

    What float32 had rounded would move by 1e-7 of its size, or not at all.
    """
    detector = build_detector(tiny_config(*DETECTORS[name])).eval()
    for part, parameter in detector.named_parameters():
        if "sampling_offsets" in part:  # away from the middles of cells, where there are kinks
            nn.init.normal_(parameter, std=0.3)
    images, sizes = torch.randn(2, 3, 70, 90), [(70, 90), (64, 50)]
    images[1, :, 64:], images[1, :, :, 50:] = 0, 0
    with torch.no_grad():
        single = detector(images, sizes)
        double = detector.double()(images.double(), sizes)
    assert double.logits.dtype == double.boxes.dtype == torch.float64
    assert_close(single.logits.double(), double.logits, rtol=1e-4, atol=1e-4)
    assert_close(single.boxes.double(), double.boxes, rtol=0, atol=1e-4)

    weights = torch.randn_like(double.logits), torch.randn_like(double.boxes)
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]

    def output():
        found = detector(images.double(), sizes)
        return (found.logits * weights[0]).sum() + (found.boxes * weights[1]).sum()

    gradients = torch.autograd.grad(output(), trained, allow_unused=True)
    used = [(p, g) for p, g in zip(trained, gradients, strict=True) if g is not None]
    size = math.sqrt(sum(gradient.square().sum().item() for _, gradient in used))
    ends = []
    with torch.no_grad():
        for step in (1e-7, -2e-7):
            for parameter, gradient in used:
                parameter += gradient * (step / size)
            ends.append(output().item())
    assert (ends[0] - ends[1]) / 2e-7 == pytest.approx(size, rel=1e-5)
