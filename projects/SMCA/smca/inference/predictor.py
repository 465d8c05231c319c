"""From images to boxes in one call.

predictor = smca.Predictor("smca_R50_50ep", "model_final.pth")
result = predictor("image.jpg", threshold=0.5)
result.boxes, result.scores, result.class_names
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor

from .. import hosts
from ..checkpoints import load_state, pop_weights, read_checkpoint
from ..checkpoints.choosing import trained_weights
from ..checkpoints.fetching import local_file
from ..checkpoints.loading import trained_classes
from ..config import choose_device, config_file, is_own_model, load_cfg, validate
from ..data.classes import num_classes
from ..data.coco import dataset_classes, trained_names
from ..data.images import read_rgb, upright_rgb
from ..data.mapper import DetrMapper
from ..errors import ConfigError, DatasetError
from ..evaluation.detections import require_finite
from ..structures import Detections, Size
from .detect import Inference

ImageLike = str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class Result(Detections):
    """The detections of an image, best first, with tensors on the CPU.

    Attributes:
        boxes: (D, 4) xyxy in pixels of the given image. Only Detectron2's own models clip them.
        scores: (D,) in [0, 1].
        labels: (D,) contiguous class indices.
        class_names: (D,) names of these classes.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)


class Predictor:
    """Detects objects in images with a trained model.

    Attributes:
        cfg: the configuration, with the device that is used.
        device: device of the model.
        weights: the checkpoint that was taken, and why.
        class_names: names by contiguous class index. They come from the checkpoint, or from the
            annotation file of the config's datasets, or are COCO's 80 if these datasets are COCO;
            otherwise they are numbers.
        detector: the model in evaluation mode. In both hosts the project's own models are a
            :class:`~smca.modeling.Detector`.
    """

    def __init__(
        self,
        config: str | os.PathLike | CfgNode,
        weights: str | os.PathLike | None = None,
        *,
        opts: Sequence[object] = (),
        device: str | torch.device | None = None,
        engine: str = "native",
    ):
        """
        Args:
            config: path of a YAML file, a name of :mod:`smca.model_zoo`, or a config. Keys that
                nothing but training reads may be unknown here, and may have any value.
            weights: path or address of a checkpoint of the whole model; None: see
                :func:`~smca.checkpoints.choosing.trained_weights`.
            opts: ``KEY, value, ...`` changes of the config.
            device: None is MODEL.DEVICE, or the CPU if there is no GPU.
            engine: "native", or "detectron2", which runs any backbone and model of Detectron2's
                registries and reads its paths, such as ``detectron2://...``.

        Raises:
            ConfigError: a config or a value cannot work, or weights or Detectron2 are missing.
            FileNotFoundError, CheckpointError: the checkpoint is missing or does not fit.
        """
        if engine not in ("native", "detectron2"):
            raise ConfigError(f"engine is {engine!r}; it must be 'native' or 'detectron2'")
        host: type[Inference] = Inference
        if engine == "detectron2":
            host = hosts.load("detectron2", "predictor").Detectron2Host
        file = "" if isinstance(config, CfgNode) else _path(os.fspath(config))
        cfg = host.read(file or config, to_train=False)
        cfg.defrost()
        load_cfg(cfg, opts=opts)
        self.weights = trained_weights(
            cfg, config_file=file, opts=opts, named=os.path.expanduser(weights or "")
        )
        content = read_checkpoint(local_file(self.weights.path, host.path_manager))
        state = pop_weights(content)
        if is_own_model(cfg) and cfg.MODEL.SMCA.NUM_CLASSES == 0:
            softmax = cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"
            cfg.MODEL.SMCA.NUM_CLASSES = trained_classes(state, content, softmax)
        self.device = choose_device(cfg, device)
        cfg.MODEL.DEVICE = str(self.device)
        validate(cfg, to_train=False)
        cfg.freeze()
        self.cfg = cfg
        self._host = host(cfg)
        self.detector = self._host.detector
        load_state(self.detector, state, source=self.weights.path, strict=True, content=content)
        self.class_names = _class_names(cfg, content.get("class_names"))
        self._mapper = DetrMapper.from_config(cfg, is_train=False)

    @torch.no_grad()
    def __call__(
        self, images: ImageLike | Sequence[ImageLike], threshold: float = 0.0
    ) -> Result | list[Result]:
        """Detect objects in an image, or in a list of images as one batch.

        Args:
            images: an image or a list of images. An image is a path, a PIL image or a NumPy array:
                (h, w, 3) uint8 in the order **RGB** (OpenCV's is BGR: ``image[..., ::-1]``), or
                (h, w) uint8 in grey.
            threshold: detections with a lower score are left out.

        Returns:
            the result of the image, or a list of results. A result has at most
            TEST.DETECTIONS_PER_IMAGE detections.

        Raises:
            OSError: a file is missing, cannot be read as an image, or has grey values for which
                white is not known.
            TypeError, ValueError: not an image, or an array of another shape or type.
            FloatingPointError: the model's weights are not finite.
        """
        originals = [self.read(image) for image in _as_list(images)]
        if not originals:
            return []
        mapped = [self._mapper.map_image(image) for image in originals]
        sizes = [(image.height, image.width) for image in originals]
        results = [self._result(found, threshold) for found in self._host.detect(mapped, sizes)]
        return results if isinstance(images, (list, tuple)) else results[0]

    def inputs(
        self, images: ImageLike | Sequence[ImageLike]
    ) -> tuple[Tensor, list[Size], list[np.ndarray]]:
        """The detector's input for images, for those who call the detector or look into it.

        Args:
            images: at least one, see :meth:`__call__`.

        Returns:
            (B, 3, H, W), resized, normalised and padded, on ``device``; the (h, w) of each image in
            it without the padding; and the images as they were given, (h, w, 3) uint8 RGB.
        """
        originals = [self.read(image) for image in _as_list(images)]
        batch, sizes = self._host.pad([self._mapper.map_image(image) for image in originals])
        return batch, sizes, [np.array(image) for image in originals]

    def read(self, image: ImageLike) -> Image.Image:
        """Return an image as 8-bit RGB, turned as its EXIF orientation says."""
        return read_image(image, self.cfg.INPUT.GREY_BITS)

    def _result(self, found: Detections, threshold: float) -> Result:
        require_finite(found.scores)
        kept = found.scores >= threshold
        labels = found.labels[kept]
        names = tuple(self.class_names[label] for label in labels.tolist())
        return Result(found.boxes[kept], found.scores[kept], labels, names)


def read_image(image: ImageLike, grey_bits: int = 0) -> Image.Image:
    """Return an image as :func:`~smca.data.images.upright_rgb` does; see :class:`Predictor`."""
    if isinstance(image, (str, os.PathLike)):
        try:
            return read_rgb(os.path.expanduser(image), grey_bits)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OSError(f"{os.fspath(image)} cannot be read as an image: {error}") from error
    if isinstance(image, Image.Image):
        if not (image.width and image.height):
            raise ValueError(f"an image of {image.width}x{image.height} pixels is no image")
        return upright_rgb(image, grey_bits)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"{type(image).__name__} is no image: give a path, a PIL image or a NumPy array "
            "(h, w, 3) uint8 RGB, or a list of such"
        )
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not fits or not image.size:
        raise ValueError(
            f"an array of shape {image.shape} and type {image.dtype} is no image: it must be "
            "(h, w, 3) RGB or (h, w) grey, of type uint8 in 0..255"
        )
    return Image.fromarray(np.ascontiguousarray(image)).convert("RGB")


def _as_list(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    return images if isinstance(images, (list, tuple)) else [images]


def _path(config: str) -> str:
    config = os.path.expanduser(config)
    if os.path.isfile(config):
        return config
    try:
        return config_file(config)
    except ConfigError as error:
        raise ConfigError(f"{config} is no file, and {error}") from None


def _class_names(cfg: CfgNode, saved: Sequence[str] | None) -> tuple[str, ...]:
    count = num_classes(cfg)
    if saved and len(saved) == count:
        return tuple(saved)
    if names := trained_names(cfg):
        return names
    for name in cfg.DATASETS.TEST:
        with contextlib.suppress(DatasetError):
            names = tuple(dataset_classes(cfg, name))
            if len(names) == count:
                return names
    return tuple(map(str, range(count)))
