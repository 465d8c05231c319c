"""Plain detectors whose state dicts are laid out as the released files are.

They share nothing with the package: dense attention, dense log G, loops where they read easier.
One image at a time, without padding. Shapes: N queries, C channels.
"""

import math

import torch
import torch.nn.functional as F
from released_layers import (
    MLP,
    Backbone,
    ConditionalLayer,
    DecoderLayer,
    DepthwiseLayer,
    EncoderLayer,
    PreNormDecoderLayer,
    PreNormEncoderLayer,
    Settings,
    SMCALayer,
    positions,
    sine,
    tokens,
)
from torch import nn


class Detector(nn.Module):
    """A released program: `kind` detr, conditional_detr, up_detr, smca or smca_depthwise.

    Also up_detr_pretrained, as it finds boxes without patches. `columns` is the number of rows of
    the class layer.
    """

    def __init__(self, kind, *, columns, depth=50, dilated=False, kernels=(5,)):
        super().__init__()
        channels = Settings.channels
        self.kind, self.stride = kind, 16 if dilated else 32
        self.backbone = nn.Sequential(Backbone(depth, dilated))
        self.transformer = nn.Module()
        self.transformer.encoder, self.transformer.decoder = nn.Module(), nn.Module()
        encoder_layer, decoder_layer = EncoderLayer, DecoderLayer
        if kind == "smca":
            decoder_layer = SMCALayer
        elif kind == "conditional_detr":
            decoder_layer = ConditionalLayer
        elif kind.startswith("up_detr"):
            encoder_layer, decoder_layer = PreNormEncoderLayer, PreNormDecoderLayer
        if kind == "smca_depthwise":
            encoder_layer = lambda: DepthwiseLayer(kernels)  # noqa: E731
            decoder_layer = lambda number: SMCALayer(number, scales=4)  # noqa: E731
            self.transformer.level_embed = nn.Parameter(torch.randn(4, channels))
            self.transformer.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            for width in (512, 1024, 2048):
                self.add_module(f"input_proj_{width}", nn.Conv2d(width, channels, 1))
            self.input_proj_2048_3 = nn.Conv2d(2048, channels, 3, stride=2, padding=1)
        else:
            self.input_proj = nn.Conv2d(2048, channels, 1)
        encoder, decoder = self.transformer.encoder, self.transformer.decoder
        encoder.layers = nn.ModuleList(encoder_layer() for _ in range(Settings.encoder_layers))
        decoder.layers = nn.ModuleList(map(decoder_layer, range(Settings.decoder_layers)))
        encoder.norm = nn.LayerNorm(channels) if kind.startswith("up_detr") else nn.Identity()
        decoder.norm = nn.LayerNorm(channels)
        if kind == "conditional_detr":
            decoder.query_scale = MLP(channels, channels, channels)
            decoder.ref_point_head = MLP(channels, channels, 2)
        if kind == "up_detr_pretrained":
            self.patch2query = nn.Linear(2048, channels)
            self.feature_align = MLP(channels, channels, 2048)
        self.query_embed = nn.Embedding(Settings.queries, channels)
        self.class_embed = nn.Linear(channels, columns)
        self.bbox_embed = MLP(channels, channels, channels, 4)

    @torch.no_grad()
    def forward(self, image):
        """image (3, H, W) -> class logits (N, columns), boxes (N, 4) cxcywh in [0, 1]."""
        features = self.backbone(image[None])
        maps = self.encode_depthwise(features) if self.kind == "smca_depthwise" else None
        maps = maps or self.encode(features[-1])
        query = self.query_embed.weight[None]
        x, state, decoder = torch.zeros_like(query), {}, self.transformer.decoder
        if self.kind == "conditional_detr":
            reference = state["reference"] = decoder.ref_point_head(query)
            horizontal, vertical = (reference.sigmoid() * 2 * math.pi).unbind(-1)
            half = Settings.channels // 2
            state["sine"] = torch.cat((sine(vertical, half), sine(horizontal, half)), dim=-1)
            state["transform"] = decoder.query_scale
        for layer in decoder.layers:
            x = layer(x, query, maps, image.shape[-2:], state)
        x = decoder.norm(x)[0]
        boxes = self.bbox_embed(x)
        if "reference" in state:
            boxes = boxes + F.pad(state["reference"][0], (0, 2))
        return self.class_embed(x), boxes.sigmoid()

    def encode(self, feature):
        """[(memory, positions, (rows, columns), stride)] of the one scale."""
        projected = self.input_proj(feature)
        shape = projected.shape[-2:]
        x, position = tokens(projected), positions(*shape)
        for layer in self.transformer.encoder.layers:
            x = layer(x, position)
        return [(self.transformer.encoder.norm(x), position, shape, self.stride)]

    def encode_depthwise(self, features):
        """The same of the scales 16 (from 8), 16, 32, 64."""
        maps = [
            self.input_proj_512(features[0]),
            self.input_proj_1024(features[1]),
            self.input_proj_2048(features[2]),
            self.input_proj_2048_3(features[2]),
        ]
        placements = [
            (positions(*x.shape[-2:]) + level).T.unflatten(1, x.shape[-2:])[None]
            for x, level in zip(maps, self.transformer.level_embed, strict=True)
        ]
        for layer in self.transformer.encoder.layers:
            maps = layer(maps, placements)
        maps[0] = self.transformer.conv(maps[0])
        placements[0] = placements[1]
        return [
            (tokens(x), tokens(position), x.shape[-2:], stride)
            for x, position, stride in zip(maps, placements, (16, 16, 32, 64), strict=True)
        ]
