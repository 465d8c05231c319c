"""One step of training in both hosts: forward, backward, check of the losses, update."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from ..distributed import all_gather, mean_over_workers
from ..errors import NonFiniteLossError

logger = logging.getLogger(__name__)

# float16's loss scaling starts here and doubles when it can. Gradients of random weights overflow
# above about this scale; torch's default of 2^16 would waste the first steps of a run.
INITIAL_SCALE = 2.0**10
# torch's names of CPUs without AVX-512, where it convolves half precision in plain loops.
NO_HALF = ("NO AVX", "AVX2")


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed torch for one iteration of one worker.

    A run that resumes at ``iteration`` continues as if it had never stopped, and checkpoints need
    no random state.
    """
    digest = hashlib.blake2b(f"{seed}/{iteration}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def amp_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """Return the half precision that SOLVER.AMP asks for on ``device``, or None for float32."""
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return None
    if amp.PRECISION != "auto":
        return getattr(torch, amp.PRECISION)
    # float16 is as fast as bfloat16 and, with a scaled loss, eight times as accurate.
    return torch.float16 if device.type == "cuda" else torch.bfloat16


class TrainingStep:
    """Runs steps in float32, or in the mixed precision ``amp``, see :func:`amp_dtype`.

    On CUDA this turns off cuDNN's attention for the process: it builds a plan for each size of
    images, and flash attention is no slower.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, device: torch.device, amp: torch.dtype | None
    ):
        if amp is not None:
            logger.info("mixed precision: %s", str(amp).removeprefix("torch."))
            if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in NO_HALF:
                logger.warning(
                    "this CPU computes in half precision several times as slowly as in float32; "
                    "SOLVER.AMP.ENABLED False is faster here"
                )
        if device.type == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.optimizer = optimizer
        self.device = device
        self.amp = amp
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=INITIAL_SCALE, enabled=amp is torch.float16
        )

    def __call__(
        self, compute_losses: Callable[[], Mapping[str, Tensor]], image_ids: Sequence[int]
    ) -> dict[str, float]:
        """
        Args:
            compute_losses: runs the model and returns weighted losses, which are summed.
            image_ids: images of the step, for the error message.

        Returns:
            the losses, averaged over the workers.

        Raises:
            NonFiniteLossError: on every worker, before the update, if one has such a loss.
        """
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            losses = compute_losses()
        stacked = torch.stack(list(losses.values()))
        # The copy waits for the forward pass alone; meanwhile the backward pass is queued.
        values = mean_over_workers(stacked)
        values = values.to("cpu", non_blocking=self.device.type != "mps")
        copied = torch.cuda.Event() if self.device.type == "cuda" else None
        if copied:
            copied.record(torch.cuda.current_stream(self.device))
        self.optimizer.zero_grad()
        self.scaler.scale(stacked.sum()).backward()
        if copied:
            copied.synchronize()
        if not values.isfinite().all():
            names = [n for n, finite in zip(losses, values.isfinite(), strict=True) if not finite]
            images = [image for ids in all_gather(image_ids) for image in ids]
            raise NonFiniteLossError(f"{', '.join(names)} of the images {images}")
        # A fused optimizer would unscale inside its step, after the clipping.
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return dict(zip(losses, values.tolist(), strict=True))
