"""Run a config's detector on random images: inference and training steps, timed by stages."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from fvcore.common.config import CfgNode
from measuring import Clock
from roofline import HALF, precision
from torch import Tensor

from smca.analysis.counting import count_model
from smca.analysis.host import detector_subject, made_up_targets
from smca.config import pretrains
from smca.engine.step import TrainingStep
from smca.modeling.detector import build_detector, pad_images, pixel_statistics
from smca.modeling.heads import detect
from smca.modeling.resnet_blocks import BasicBlock, Bottleneck
from smca.structures import Detections, Size
from smca.training import build_criterion
from smca.training.solver import build_optimizer


@dataclass(frozen=True)
class Setting:
    """The images' size, and the precision and device of the work.

    Attributes:
        size: (h, w) of the images in pixels.
        batch: number of images.
        precision: one of :data:`roofline.PRECISIONS`.
        device: torch's name of the device.
    """

    size: Size
    batch: int
    precision: str
    device: str

    @property
    def half(self) -> bool:
        return self.precision in HALF


class Workload:
    """The native host's work on a batch, from pixels on the host to detections or an update."""

    def __init__(self, cfg: CfgNode, setting: Setting):
        torch.manual_seed(0)
        self.cfg = cfg
        self.setting = setting
        self.device = torch.device(setting.device)
        self.detector = build_detector(cfg).to(self.device)
        _damp_residuals(self.detector.backbone)
        self.criterion = build_criterion(cfg)
        self.mean, self.std = (part.to(self.device) for part in pixel_statistics(cfg))
        optimizer = build_optimizer(cfg, self.detector)
        self.step = TrainingStep(optimizer, device=self.device, amp=HALF.get(setting.precision))
        self.enter: Callable[[str], None] = lambda stage: None
        self.see(setting.size, setting.batch)

    def see(self, size: Size, batch: int) -> None:
        """Replace the batch by random images of another size and number."""
        images = torch.randint(256, (batch, 3, *size), dtype=torch.uint8)
        # Loaders return pinned images, too.
        self.images = list(images.pin_memory() if self.device.type == "cuda" else images)

    def _batch(self) -> tuple[Tensor, list[Size]]:
        self.enter("input")
        return pad_images(self.images, mean=self.mean, std=self.std)

    @torch.no_grad()
    def infer(self) -> list[Detections]:
        """Return the detections of the batch."""
        self.detector.eval()
        images, sizes = self._batch()
        half = torch.autocast(self.device.type, enabled=self.setting.half)
        patches = made_up_targets(images, self.cfg) if pretrains(self.cfg) else None
        with precision(self.setting.precision), half:
            return detect(
                self.detector(images, sizes, patches),
                sizes,
                max_detections=self.cfg.TEST.DETECTIONS_PER_IMAGE,
                softmax=self.cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax",
            )

    def train(self) -> dict[str, float]:
        """Train one step and return its losses.

        A step includes forward pass, matcher, loss, backward pass, clipping and update.
        """
        self.detector.train()
        images, sizes = self._batch()
        targets = made_up_targets(images, self.cfg)

        def losses() -> dict[str, Tensor]:
            predictions = self.detector(images, sizes, targets)
            self.enter("loss")
            found = self.criterion(predictions, targets)
            self.enter("backward")
            return found

        with precision(self.setting.precision):
            return self.step(losses, range(len(self.images)))

    def demands(self) -> dict[str, tuple[float, float]]:
        """Return the least floating-point operations and bytes that each kind of work needs.

        It counts one group of queries. The backward pass computes and moves twice as much as the
        forward pass, except in the backbone's frozen stages. The results of convolutions and
        matrix products are written and read once.
        """
        setting = self.setting
        subject = detector_subject(self.detector, self.cfg)
        parts = count_model(subject, size=setting.size, batch=setting.batch).parts
        whole, width = parts[""], 2 if setting.half else 4
        stages = [f"backbone.{name}" for name, _ in self.detector.backbone.named_children()]
        frozen = sum(parts[name].multiply_adds for name in stages if not parts[name].trainable)
        forward = 2 * whole.multiply_adds, 4 * whole.parameters + 2 * width * whole.activations
        return {"inference": forward, "training": (3 * forward[0] - 4 * frozen, 3 * forward[1])}

    def stages(self, work: Callable[[], object]) -> dict[str, float]:
        """Run ``work``, :meth:`infer` or :meth:`train`, and return the seconds of each stage.

        Parts of the detector are stages; its heads include the selection of detections.
        """
        clock, entered = Clock(self.device), []

        def enter(stage: str) -> None:
            entered.append((stage, clock.now()))

        def within(stage: str, function: Callable, after: str | None = None) -> Callable:
            def run(*arguments, **options):
                enter(stage)
                result = function(*arguments, **options)
                if after:
                    enter(after)
                return result

            return run

        update = self.step.optimizer.step
        with contextlib.ExitStack() as stack:
            for name, part in self.detector.named_children():
                hook = part.register_forward_pre_hook(lambda *_, name=name: enter(name))
                stack.callback(hook.remove)
            replaced = [
                (self, "enter", enter),
                (self.step.optimizer, "step", within("optimizer", update)),
            ]
            if matcher := getattr(self.criterion, "matcher", None):  # TSP-FCOS has none
                matcher = within("matcher", matcher, after="loss")
                replaced.append((self.criterion, "matcher", matcher))
            for owner, name, function in replaced:
                stack.enter_context(mock.patch.object(owner, name, function))
            work()
        enter("end")
        names, moments = zip(*entered, strict=True)
        seconds = dict.fromkeys(names[:-1], 0.0)
        for name, spent in zip(names[:-1], clock.seconds(moments), strict=True):
            seconds[name] += spent
        return seconds


@torch.no_grad()
def _damp_residuals(backbone: torch.nn.Module) -> None:
    """Scale residual branches so that a deep untrained backbone stays within float16's range."""
    for module in backbone.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            *_, last = module.children()
            if getattr(last.norm, "weight", None) is not None:
                last.norm.weight.mul_(0.25)
