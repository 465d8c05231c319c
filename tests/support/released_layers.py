"""The layers of the plain detectors in released_reference.py.

Shapes: N queries, L keys, H heads, C channels, S scales.
"""

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

HEADS = 8


class Settings:
    """Sizes; but for the channels small, and none the published one."""

    channels, ffn, queries = 256, 48, 11
    encoder_layers, decoder_layers = 2, 3


class Backbone(nn.Module):
    """torchvision's ResNet under `body`, without its classifier."""

    def __init__(self, depth, dilated):
        super().__init__()
        resnet = getattr(torchvision.models, f"resnet{depth}")(
            norm_layer=FrozenBatchNorm2d, replace_stride_with_dilation=[False, False, dilated]
        )
        self.body = nn.Module()
        for name, child in resnet.named_children():
            if name not in ("avgpool", "fc"):
                self.body.add_module(name, child)

    def forward(self, image):
        """The maps of layer2, layer3 and layer4."""
        x, maps = image, []
        for name, child in self.body.named_children():
            x = child(x)
            if name in ("layer2", "layer3", "layer4"):
                maps.append(x)
        return maps


class MLP(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def attention():
    return nn.MultiheadAttention(Settings.channels, HEADS, batch_first=True)


def sine(x, channels):
    """(...) -> (..., channels): sine and cosine in turns, each pair of a longer wavelength."""
    out = []
    for i in range(channels):
        angle = x / 10000 ** (2 * (i // 2) / channels)
        out.append(angle.sin() if i % 2 == 0 else angle.cos())
    return torch.stack(out, dim=-1)


def positions(rows, columns):
    """(rows * columns, C): y first; cells counted from 1 to 2 pi."""
    y = torch.arange(1, rows + 1) / (rows + 1e-6) * 2 * math.pi
    x = torch.arange(1, columns + 1) / (columns + 1e-6) * 2 * math.pi
    half = Settings.channels // 2
    y = sine(y, half)[:, None].expand(rows, columns, half)
    x = sine(x, half)[None].expand(rows, columns, half)
    return torch.cat((y, x), dim=-1).flatten(0, 1)


def tokens(feature):
    """(1, C, h, w) -> (1, h * w, C)."""
    return feature.flatten(2).transpose(1, 2)


class Layer(nn.Module):
    """What all layers have: linears of the FFN, and norms."""

    def __init__(self, norms):
        super().__init__()
        self.linear1 = nn.Linear(Settings.channels, Settings.ffn)
        self.linear2 = nn.Linear(Settings.ffn, Settings.channels)
        for number in range(1, norms + 1):
            self.add_module(f"norm{number}", nn.LayerNorm(Settings.channels))

    def ffn(self, x):
        return self.linear2(self.linear1(x).relu())


class EncoderLayer(Layer):
    def __init__(self):
        super().__init__(norms=2)
        self.self_attn = attention()

    def forward(self, x, position):
        x = self.norm1(x + self.self_attn(x + position, x + position, x)[0])
        return self.norm2(x + self.ffn(x))


class DecoderLayer(Layer):
    """DETR's. `state` is what layers hand on; this one has no use for it."""

    def __init__(self, number, norms=3):
        super().__init__(norms)
        self.self_attn, self.multihead_attn = attention(), attention()

    def forward(self, x, query, maps, image_size, state):
        placed = x + query
        x = self.norm1(x + self.self_attn(placed, placed, x)[0])
        ((memory, position, _, _),) = maps
        x = self.norm2(x + self.multihead_attn(x + query, memory + position, memory)[0])
        return self.norm3(x + self.ffn(x))


class PreNormEncoderLayer(EncoderLayer):
    """UP-DETR's: what attention and the FFN add is computed from normed tokens."""

    def forward(self, x, position):
        y = self.norm1(x)
        x = x + self.self_attn(y + position, y + position, y)[0]
        return x + self.ffn(self.norm2(x))


class PreNormDecoderLayer(DecoderLayer):
    def forward(self, x, query, maps, image_size, state):
        y = self.norm1(x)
        x = x + self.self_attn(y + query, y + query, y)[0]
        ((memory, position, _, _),) = maps
        y = self.norm2(x)
        x = x + self.multihead_attn(y + query, memory + position, memory)[0]
        return x + self.ffn(self.norm3(x))


class SMCALayer(DecoderLayer):
    def __init__(self, number, scales=1):
        super().__init__(number, norms=4)
        channels = Settings.channels
        if number == 0:
            self.point1 = MLP(channels, channels, channels, 2)
        self.point2 = nn.Linear(channels, scales * HEADS * 2)
        self.point3 = nn.Linear(channels, scales * HEADS * 2)
        nn.init.ones_(self.point3.bias)
        if scales > 1:
            self.point4 = nn.Linear(channels, scales)

    def forward(self, x, query, maps, image_size, state):
        observed = self.norm4(x + query)
        if "reference" not in state:
            state["reference"] = self.point1(observed)
        centre = state["reference"][0].sigmoid()  # (N, 2)
        by_head = (-1, len(maps), HEADS, 2)
        offsets = self.point2(observed).view(by_head)
        scales = self.point3(observed).view(by_head).square()
        placed = x + query
        x = self.norm1(x + self.self_attn(placed, placed, x)[0])
        height, width = image_size
        results = []
        for number, (memory, position, (rows, columns), stride) in enumerate(maps):
            centres = centre * torch.tensor([width / stride, height / stride])
            centres = centres[:, None] + offsets[:, number]  # (N, H, 2)
            log_g = torch.zeros(HEADS, len(centres), rows, columns)
            for row in range(rows):
                for column in range(columns):
                    difference = torch.tensor([column, row]) - centres
                    quadratic = (scales[:, number] * difference**2).sum(-1)  # (N, H)
                    log_g[:, :, row, column] = -quadratic.T * (stride / 32) / 8
            attended, _ = self.multihead_attn(
                x + query, memory + position, memory, attn_mask=log_g.flatten(2)
            )
            results.append(attended)
        result = results[0]
        if len(maps) > 1:
            # The weights add up to 1, so that the output projection may come before the sum.
            alpha = self.point4(observed).softmax(-1)
            result = sum(alpha[..., s, None] * results[s] for s in range(len(maps)))
        x = self.norm2(x + result)
        return self.norm3(x + self.ffn(x))


class OutputProjection(nn.Module):
    def __init__(self):
        super().__init__()
        self.out_proj = nn.Linear(Settings.channels, Settings.channels)


def heads(x):
    """(1, N, C) -> (H, N, d)."""
    return x[0].unflatten(-1, (HEADS, -1)).transpose(0, 1)


def dense_attention(query, key, value):
    """(H, N, e), (H, L, e), (H, L, d) -> (1, N, C)."""
    weights = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(-1)
    return (weights @ value).transpose(0, 1).flatten(1)[None]


class ConditionalLayer(Layer):
    def __init__(self, number):
        super().__init__(norms=3)
        names = ["sa_qcontent", "sa_qpos", "sa_kcontent", "sa_kpos", "sa_v"]
        names += ["ca_qcontent", "ca_kcontent", "ca_kpos", "ca_v"] + ["ca_qpos"] * (number == 0)
        for name in names:
            self.add_module(f"{name}_proj", nn.Linear(Settings.channels, Settings.channels))
        self.ca_qpos_sine_proj = nn.Linear(Settings.channels, Settings.channels)
        self.self_attn, self.cross_attn = OutputProjection(), OutputProjection()
        self.number = number

    def forward(self, x, query, maps, image_size, state):
        place = state["sine"]
        if self.number > 0:
            place = place * state["transform"](x)
        attended = dense_attention(
            heads(self.sa_qcontent_proj(x) + self.sa_qpos_proj(query)),
            heads(self.sa_kcontent_proj(x) + self.sa_kpos_proj(query)),
            heads(self.sa_v_proj(x)),
        )
        x = self.norm1(x + self.self_attn.out_proj(attended))
        ((memory, position, _, _),) = maps
        content, key = self.ca_qcontent_proj(x), self.ca_kcontent_proj(memory)
        key_place = self.ca_kpos_proj(position)[None]
        if self.number == 0:
            content = content + self.ca_qpos_proj(query)
            key = key + key_place
        attended = dense_attention(
            torch.cat((heads(content), heads(self.ca_qpos_sine_proj(place))), dim=-1),
            torch.cat((heads(key), heads(key_place)), dim=-1),
            heads(self.ca_v_proj(memory)),
        )
        x = self.norm2(x + self.cross_attn.out_proj(attended))
        return self.norm3(x + self.ffn(x))


class DepthwiseLayer(Layer):
    """A block of the bidirectional encoder; `kernels` are cycled through by its convolutions."""

    def __init__(self, kernels):
        super().__init__(norms=2)
        channels = Settings.channels
        self.conv_1, self.conv_2 = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        names = [f"self_attn_{stride}" for stride in (8, 16, 32, 64)]
        names += [f"{way}_{i}" for i in (1, 2, 3) for way in ("high_to_low", "low_to_high")]
        for number, name in enumerate(names):
            kernel = kernels[number % len(kernels)]
            stride = 2 if name.startswith("high") else 1
            conv = nn.Conv2d(
                channels, channels, kernel, stride=stride, padding=kernel // 2, groups=channels
            )
            self.add_module(name, conv)

    def forward(self, maps, placements):
        z = [
            getattr(self, f"self_attn_{stride}")(self.conv_1(x + position))
            for x, position, stride in zip(maps, placements, (8, 16, 32, 64), strict=True)
        ]
        out = []
        for s, x in enumerate(maps):
            mixed = z[s]
            if s > 0:
                mixed = mixed + getattr(self, f"high_to_low_{s}")(z[s - 1])
            if s < 3:
                up = getattr(self, f"low_to_high_{s + 1}")(z[s + 1])
                mixed = mixed + F.interpolate(
                    up, size=x.shape[-2:], mode="bilinear", align_corners=True
                )
            y = self.norm1(tokens(x + self.conv_2(mixed)))
            y = self.norm2(y + self.ffn(y))
            out.append(y.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return out
