"""timm's models as backbones, by name.

A model that has maps of several strides returns them. A plain ViT has one, from which a
:class:`~smca.modeling.simple_pyramid.SimplePyramid` makes the others.
"""

import difflib
import importlib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import Size
from .parts import Backbone
from .registry import SMCA_BACKBONE_REGISTRY
from .simple_pyramid import SimplePyramid, pyramid_strides


@SMCA_BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """A timm model whose maps have the names of a ResNet's: res2 has stride 4, ..., res5 32.

    It pads images to the sides that the model takes, and crops the maps. The weights of the model,
    ``timm``, are random until a checkpoint is loaded.
    """

    def __init__(
        self,
        *,
        name: str,
        out_features: Sequence[str],
        freeze_at: int = 0,
        frozen_bn: bool = True,
        dim: int = 256,
    ):
        """
        Args:
            name: of the model in timm.
            out_features: names of the maps to return.
            freeze_at: n freezes the model up to its map of stride 2 ** n; 0: nothing.
            frozen_bn: batch norms keep their statistics and weights.
            dim: channels of the maps that a pyramid makes.

        Raises:
            ConfigError: timm is missing, or the model has no such map or stage, or it takes images
                of one size only.
        """
        super().__init__()
        timm = _import_timm(name)
        sketch = _sketch(timm, name)
        reductions, channels = sketch.feature_info.reduction(), sketch.feature_info.channels()
        is_plain = len(set(reductions)) == 1
        offered = pyramid_strides(reductions[0]) if is_plain else _strides_by_name(reductions)
        if not set(out_features) <= set(offered):
            raise ConfigError(
                f"MODEL.SMCA.IN_FEATURES is {list(out_features)}; {name} has {list(offered)}"
            )
        self.strides = {feature: offered[feature] for feature in out_features}
        self.divisor, maps = _examine(sketch, name, math.lcm(*reductions, *self.strides.values()))
        # The place of each map among the model's, of which a pyramid reads the last.
        last = len(reductions) - 1
        self.places = {
            feature: last if is_plain else reductions.index(stride)
            for feature, stride in self.strides.items()
        }
        frozen = [one for one, n in zip(maps, reductions, strict=True) if n <= 2**freeze_at]
        if freeze_at and not frozen:
            least = math.ceil(math.log2(reductions[0]))
            raise ConfigError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; the first map of {name} has stride "
                f"{reductions[0]}: it must be 0 or at least {least}"
            )
        # Other maps may have parameters of their own.
        trained = _parameters_of(sketch, [maps[place] for place in self.places.values()])
        if freeze_at:
            trained -= _parameters_of(sketch, frozen)

        self.timm = _create(timm, name)
        for path, parameter in self.timm.named_parameters():
            parameter.requires_grad = path in trained
        for path, module in list(self.timm.named_modules()):
            is_norm = isinstance(module, nn.BatchNorm2d)
            if is_norm and (frozen_bn or not module.weight.requires_grad):
                self.timm.set_submodule(path, timm.layers.freeze_batch_norm_2d(module))
        self.channels = {feature: channels[place] for feature, place in self.places.items()}
        self.pyramid = None
        if is_plain:
            self.channels = dict.fromkeys(out_features, dim)
            self.pyramid = SimplePyramid(
                in_channels=channels[last],
                in_stride=reductions[last],
                dim=dim,
                strides=self.strides,
            )

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {
            "name": cfg.MODEL.TIMM.NAME,
            "out_features": cfg.MODEL.SMCA.IN_FEATURES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "frozen_bn": cfg.MODEL.TIMM.FROZEN_BN,
            "dim": cfg.MODEL.SMCA.HIDDEN_DIM,
        }

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> dict[str, Tensor]:
        """See :meth:`~smca.modeling.parts.Backbone.forward`; ``sizes`` are not read."""
        sides = images.shape[-2:]
        images = _resized(images, [_cells(n, self.divisor) * self.divisor for n in sides])
        maps = _maps(self.timm, images)
        named = {name: maps[place] for name, place in self.places.items()}
        if self.pyramid is not None:
            named = self.pyramid(maps[-1])
        return {
            name: _resized(named[name], [_cells(n, stride) for n in sides])
            for name, stride in self.strides.items()
        }


def _cells(side: int, stride: int) -> int:
    return (side - 1) // stride + 1


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad (B, C, h, w) with zeros at the right and the bottom, or crop it there.

    Slices would tie an exported graph to the sides of images that it is made with.
    """
    return nn.functional.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]))


def _import_timm(name: str) -> ModuleType:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME TimmBackbone needs timm ({error}): pip install 'timm>=1.0.31'"
        ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.0)
        raise ConfigError(
            f"MODEL.TIMM.NAME is {name!r}, which timm does not have; did you mean {near[0]}? "
            "timm.list_models() lists all"
        )
    return timm


def _create(timm: ModuleType, name: str) -> nn.Module:
    try:
        # Models with position embeddings need it to take images of all sizes.
        return timm.create_model(name, features_only=True, dynamic_img_size=True)
    except TypeError:  # others do not know it
        return timm.create_model(name, features_only=True)


def _sketch(timm: ModuleType, name: str) -> Any:
    """Return the model with all its maps, on the device "meta", where nothing is computed."""
    try:
        with torch.device("meta"):
            return _create(timm, name).eval()
    except Exception as error:  # not all models of timm return maps
        raise _unusable(name, error) from error


def _examine(sketch: Any, name: str, divisor: int) -> tuple[int, list[Tensor]]:
    """Return a number of which images' sides must be multiples, and the maps of such an image.

    Models with windows take multiples of the size that they were trained with.

    Args:
        divisor: the first number to try.
    """
    reason: object = None
    trained_size = sketch.default_cfg["input_size"][-1]
    for side in (divisor, math.lcm(divisor, trained_size)):
        try:
            with torch.enable_grad():
                maps = _maps(sketch, torch.zeros(1, 3, side, 2 * side, device="meta"))
        except Exception as error:
            reason = error
            continue
        info = sketch.feature_info
        expected = [
            (1, channels, side // n, 2 * side // n)
            for channels, n in zip(info.channels(), info.reduction(), strict=True)
        ]
        if [tuple(one.shape) for one in maps] == expected:
            return side, maps
        reason = "its maps have other sizes than timm says"
    raise _unusable(name, f"it does not take images of all sizes: {reason}")


def _unusable(name: str, reason: object) -> ConfigError:
    first = (str(reason).splitlines() or [type(reason).__name__])[0]
    return ConfigError(f"MODEL.TIMM.NAME {name} cannot be a backbone: {first}")


def _maps(body: nn.Module, images: Tensor) -> list[Tensor]:
    """Return a timm model's maps, (B, C, h, w) each."""
    maps = body(images)
    if str(getattr(body, "output_fmt", "")).endswith("NHWC"):
        maps = [one.permute(0, 3, 1, 2) for one in maps]
    return maps


def _strides_by_name(reductions: Sequence[int]) -> dict[str, int]:
    return {f"res{round(math.log2(stride))}": stride for stride in reductions}


def _parameters_of(model: nn.Module, maps: Sequence[Tensor]) -> set[str]:
    """Return the names of the parameters that any of ``maps`` depends on."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = torch.stack([one.sum() for one in maps]).sum()
    gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    return {name for name, found in zip(names, gradients, strict=True) if found is not None}
