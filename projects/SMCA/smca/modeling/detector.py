"""The whole detector in plain PyTorch, from normalised pixels to boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..config import is_tsp, validate_model
from ..errors import ConfigError
from ..structures import Predictions, Size, Targets, to_device
from .heads import DetectionHeads
from .layers import compile_layers
from .neck import Neck
from .parts import Backbone, BaseDetector, Decoder, Encoder
from .registry import (
    SMCA_BACKBONE_REGISTRY,
    SMCA_DECODER_REGISTRY,
    SMCA_ENCODER_REGISTRY,
    build_from_registry,
)
from .tsp_fcos import TSPFCOS, tsp_parts

# Config files also call the ResNet by its names in Detectron2's registry, its own and that of
# Detectron2's ResNet: that has the same parameters, and the same maps where nothing is padded.
_RESNETS = ("build_smca_resnet_backbone", "build_resnet_backbone")


class Detector(BaseDetector):
    """Backbone, neck, encoder, decoder and heads."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: Neck,
        encoder: Encoder,
        decoder: Decoder,
        heads: DetectionHeads,
    ):
        """See :mod:`smca.modeling.parts` for the contracts of backbone, encoder and decoder."""
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.decoder = decoder
        self.heads = heads

    @property
    def in_features(self) -> Sequence[str]:
        return self.neck.in_features

    @property
    def strides(self) -> Sequence[int]:
        return self.neck.strides

    @property
    def has_attention_maps(self) -> bool:
        return self.decoder.has_attention_maps

    def predict(
        self, images: Tensor, sizes: Sequence[Size], targets: Targets | None = None
    ) -> Predictions:
        memory = self.encoder(self.neck(self.features(images, sizes), sizes))
        if targets is not None and targets.patches is not None:
            targets = replace(targets, patches=self.patch_features(targets.patches))
        return self.decoder.predict(memory, self.heads, targets)

    def patch_features(self, patches: Tensor) -> Tensor:
        """The mean (B, M, F) of the backbone's last map over each patch (B, M, 3, S, S)."""
        maps = self.features(patches.flatten(0, 1), [(patches.shape[-2], patches.shape[-1])])
        means = maps[self.neck.in_features[-1]].mean((-2, -1))
        return means.unflatten(0, patches.shape[:2])


def check_maps(backbone: Backbone) -> None:
    """Compare the maps of a small image with the backbone's ``strides`` and ``channels``.

    Raises:
        ConfigError: a map is missing or has another shape.
    """
    height, width = 64, 96
    image = torch.zeros(1, 3, height, width, device=next(backbone.parameters()).device)
    training = backbone.training
    with torch.no_grad():
        maps = backbone.eval()(image)
    backbone.train(training)
    for name, stride in backbone.strides.items():
        expected = (1, backbone.channels[name], -(-height // stride), -(-width // stride))
        found = tuple(maps[name].shape) if name in maps else None
        if found != expected:
            raise ConfigError(
                f"MODEL.BACKBONE.NAME {type(backbone).__name__}: its map {name!r} of an image of "
                f"{height}x{width} pixels is {found}; by its strides and channels it must be "
                f"{expected}"
            )


def used_strides(cfg: CfgNode, backbone: nn.Module, strides: Mapping[str, int]) -> list[int]:
    """Return the strides of MODEL.SMCA.IN_FEATURES, of the backbone's ``strides`` by name.

    Raises:
        ConfigError: the backbone returns no such map, or they are in another order.
    """
    if isinstance(backbone, Backbone):
        check_maps(backbone)
    names = cfg.MODEL.SMCA.IN_FEATURES
    for name in names:
        if name not in strides:
            raise ConfigError(
                f"MODEL.SMCA.IN_FEATURES names {name!r}; the backbone returns {sorted(strides)}"
            )
    used = [strides[name] for name in names]
    if used != sorted(used):
        raise ConfigError(
            f"MODEL.SMCA.IN_FEATURES is {names}, of strides {used}; it must go from fine to coarse"
        )
    return used


def detector_parts(
    cfg: CfgNode, backbone: nn.Module, strides: Mapping[str, int], channels: Mapping[str, int]
) -> dict[str, Any]:
    """Build the parts around a backbone: the constructor arguments of the config's detector.

    Args:
        backbone: is returned with the others.
        strides, channels: pixels a cell and channels of the maps it returns, by name.

    Raises:
        ConfigError: a value that cannot work, or a map that the backbone does not return.
    """
    validate_model(cfg)
    smca = cfg.MODEL.SMCA
    used = used_strides(cfg, backbone, strides)
    if is_tsp(cfg):
        return tsp_parts(cfg, backbone, used, [channels[name] for name in smca.IN_FEATURES])
    encoder: Encoder = build_from_registry(
        SMCA_ENCODER_REGISTRY, cfg, "MODEL.SMCA.ENCODER.NAME", smca.ENCODER.NAME
    )
    decoder: Decoder = build_from_registry(
        SMCA_DECODER_REGISTRY, cfg, "MODEL.SMCA.DECODER.NAME", smca.DECODER.NAME
    )
    if decoder.query_groups != smca.QUERY_GROUPS:
        raise ConfigError(
            f"MODEL.SMCA.QUERY_GROUPS is {smca.QUERY_GROUPS}; it must be {decoder.query_groups} "
            f"with MODEL.SMCA.DECODER.NAME {smca.DECODER.NAME}, which does not read it"
        )
    for key, wanted, part in (
        ("DENOISING.ENABLED", smca.DENOISING.ENABLED, decoder.denoising),
        ("TWO_STAGE", smca.TWO_STAGE, decoder.proposals),
        ("ONE_TO_MANY.ENABLED", smca.ONE_TO_MANY.ENABLED, decoder.one_to_many),
    ):
        if wanted != (part is not None):
            raise ConfigError(
                f"MODEL.SMCA.{key} is {wanted}; it needs a MODEL.SMCA.DECODER.NAME whose queries "
                f"are boxes, AnchoredSMCADecoder, not {smca.DECODER.NAME}"
            )
    for part, name in ((encoder, smca.ENCODER.NAME), (decoder, smca.DECODER.NAME)):
        if part.pre_norm != smca.PRE_NORM:
            raise ConfigError(
                f"MODEL.SMCA.PRE_NORM is {smca.PRE_NORM}; {name} does not read it, the "
                "IntraMultiEncoder and the DETRDecoder do"
            )
    last = channels[smca.IN_FEATURES[-1]]
    if decoder.feature_dim not in (None, last):
        raise ConfigError(
            f"MODEL.SMCA.UP_DETR.FEATURE_DIM is {decoder.feature_dim}; it must be {last}, the "
            f"channels of {smca.IN_FEATURES[-1]!r}"
        )
    if encoder.halves and any(2 * a != b for a, b in pairwise(used)):
        raise ConfigError(
            f"MODEL.SMCA.IN_FEATURES is {smca.IN_FEATURES}, of strides {used}; each must be twice "
            f"the one before with MODEL.SMCA.ENCODER.NAME {smca.ENCODER.NAME}"
        )
    if smca.COMPILE:
        compile_layers(encoder, decoder)
    return {
        "backbone": backbone,
        "neck": Neck(
            in_features=smca.IN_FEATURES,
            in_channels=[channels[name] for name in smca.IN_FEATURES],
            in_strides=used,
            num_scales=smca.NUM_SCALES,
            dim=smca.HIDDEN_DIM,
            norm=smca.NECK.NORM,
            position_offset=smca.NECK.POSITION_OFFSET,
            embeds_one_scale=encoder.embeds_one_scale,
        ),
        "encoder": encoder,
        "decoder": decoder,
        "heads": DetectionHeads(**DetectionHeads.from_config(cfg), **decoder.head_options),
    }


def build_detector(cfg: CfgNode) -> BaseDetector:
    """Build the detector of a configuration, without Detectron2.

    Raises:
        ConfigError: a value that cannot work, named.
    """
    validate_model(cfg)
    name = cfg.MODEL.BACKBONE.NAME
    backbone: Backbone = build_from_registry(
        SMCA_BACKBONE_REGISTRY,
        cfg,
        "MODEL.BACKBONE.NAME",
        "ResNet" if name in _RESNETS else name,
        others=", or with --engine detectron2 one of Detectron2's backbones",
    )
    detector = TSPFCOS if is_tsp(cfg) else Detector
    return detector(**detector_parts(cfg, backbone, backbone.strides, backbone.channels))


def pad_images(images: Sequence[Tensor], *, mean: Tensor, std: Tensor) -> tuple[Tensor, list[Size]]:
    """Normalise images and pad them with zeros to one size.

    Args:
        images: (3, h, w) each, pixels in 0..255, on any device.
        mean, std: (3, 1, 1), on the device of the model.

    Returns:
        (B, 3, H, W) on the device of ``mean``, and each image's (h, w).
    """
    sizes: list[Size] = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    batch = mean.new_zeros(len(images), 3, height, width)
    for slot, image, (h, w) in zip(batch, images, sizes, strict=True):
        # On a Mac's GPU the tensor may be gone before it is copied.
        image = image.to(mean.device, non_blocking=mean.device.type != "mps")
        place = slot[:, :h, :w].copy_(image)
        place.sub_(mean).div_(std)
    return batch, sizes


def stack_patches(patches: Sequence[Tensor | None], *, mean: Tensor, std: Tensor) -> Tensor | None:
    """Normalise the patches (M, 3, S, S) of each image: (B, M, 3, S, S). None if there are none."""
    known = [image for image in patches if image is not None]
    if not known:
        return None
    return to_device(torch.stack(known), mean.device).to(mean.dtype).sub_(mean).div_(std)


def pixel_statistics(cfg: CfgNode) -> tuple[Tensor, Tensor]:
    """MODEL.PIXEL_MEAN and MODEL.PIXEL_STD as (3, 1, 1) tensors."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return mean, std
