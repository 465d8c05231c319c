"""The predictor's host on Detectron2: its config, registries, paths and dicts."""

from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..config import add_smca_config, load_cfg
from ..errors import ConfigError
from ..structures import Detections, Size
from .meta_arch import Detectron2Detector, to_detections


def require_registered(cfg: CfgNode) -> None:
    """Raise a ConfigError if the config is for a model that Detectron2 does not know."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {name!r}; it must be 'SMCA', 'TSPFCOS' or one of "
            "Detectron2's"
        )


class Detectron2Host:
    """Any detector of Detectron2's registry; see :class:`smca.inference.detect.Inference`."""

    path_manager = PathManager

    def __init__(self, cfg: CfgNode):
        require_registered(cfg)
        self.detector = build_model(cfg).eval()

    @staticmethod
    def read(config: str | CfgNode, *, to_train: bool = True) -> CfgNode:
        if isinstance(config, CfgNode):
            return config.clone()
        cfg = get_cfg()
        add_smca_config(cfg)
        if isinstance(config, str):
            return load_cfg(cfg, config, to_train=to_train)
        # The project's own config lacks what only Detectron2 reads.
        cfg.merge_from_other_cfg(CfgNode(config))
        return cfg

    def pad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        inputs = [{"image": image} for image in images]
        if isinstance(self.detector, Detectron2Detector):
            return self.detector.preprocess(inputs)
        padded = self.detector.preprocess_image(inputs)
        return padded.tensor, padded.image_sizes

    def detect(self, images: Sequence[Tensor], output_sizes: Sequence[Size]) -> list[Detections]:
        outputs = self.detector(
            [
                {"image": image, "height": height, "width": width}
                for image, (height, width) in zip(images, output_sizes, strict=True)
            ]
        )
        return to_detections(outputs)
