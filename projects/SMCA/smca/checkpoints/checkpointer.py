"""The checkpointer of both hosts: whole files, safe reading and clear refusals."""

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ..errors import CheckpointError, ConfigError
from .fetching import local_file
from .files import damage, read_tensors, require_file, write_checkpoint, write_whole
from .loading import frozen_tensors, load_state, pop_weights, query_groups, some

logger = logging.getLogger(__name__)

# The files in a run's folder: of the end and of the best evaluation, of iteration 999
# ("model_0000999.pth"), and the file that names the newest of these.
FINAL, BEST = "model_final", "model_best"
_PERIODIC, _ALL_PERIODIC = "model_{:07d}", "model_[0-9]*.pth"
LAST = "last_checkpoint"


def can_resume(folder: str) -> bool:
    """Whether a run has left a checkpoint to resume from in its folder."""
    return os.path.isfile(os.path.join(folder, LAST))


def newest_checkpoint(folder: str) -> str:
    """The newest whole checkpoint of a run's folder; damaged ones are passed over and named.

    Returns:
        its path; "" if no run has left a checkpoint there.

    Raises:
        CheckpointError: none is whole.
    """
    tag, name = Path(folder, LAST), f"{FINAL}.pth"
    if not tag.exists() and not os.path.isfile(os.path.join(folder, name)):
        return ""
    if tag.exists():
        # The run may have been moved. If the tag is empty, it is itself the damaged file.
        name = os.path.basename(tag.read_text(encoding="utf-8", errors="replace").strip()) or LAST
    others = sorted((path.name for path in Path(folder).glob(_ALL_PERIODIC)), reverse=True)
    if name.startswith("model_"):
        # Later ones are of another run that was here before.
        others = [other for other in others if other < name]
    faults = []
    for file in dict.fromkeys([name, *others]):
        path = os.path.join(folder, file)
        fault = damage(path)
        if fault is None:
            return path
        faults.append(f"{file}: {fault}")
        logger.warning("%s is damaged (%s); the checkpoint before it is taken", path, fault)
    raise CheckpointError(f"{folder} has no whole checkpoint: {'; '.join(faults)}")


class SafeCheckpointing(Checkpointer):
    """fvcore's checkpointer with whole files, safe reading and clear refusals.

    In the other host's class it stands before Detectron2's checkpointer.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        freeze_random: bool = False,
        **options: object,
    ):
        """
        Args:
            model, save_dir, options: as fvcore's checkpointer takes them.
            strict: refuse files that lack tensors of the model.
            freeze_random: train even if tensors that training does not change are random.
        """
        super().__init__(model, save_dir, **options)
        self._strict, self._freeze_random = strict, freeze_random
        self._resuming = False
        # The last file that was loaded, and the model's tensors that it lacks.
        self._loaded = ""
        self._missing = list(self.model.state_dict())

    def load(self, path: str, *args, **kwargs) -> dict:
        if path:
            path = local_file(path, self.path_manager)
            require_file(path)
        return super().load(path, *args, **kwargs)

    def get_checkpoint_file(self) -> str:
        """The file to resume from, see :func:`newest_checkpoint`."""
        return newest_checkpoint(self.save_dir)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        if resume and self.save_dir and self.save_to_disk:
            # A run that was killed leaves unfinished files.
            folder = Path(self.save_dir)
            for unfinished in (*folder.glob("model_*.pth.tmp"), folder / f"{LAST}.tmp"):
                unfinished.unlink(missing_ok=True)
        elif self.save_dir and not resume and self.has_checkpoint():
            logger.warning(
                "%s has a run's checkpoints, which this one replaces; --resume would have gone on "
                "from them",
                self.save_dir,
            )
        # A run goes on with all it had, its averaged weights beside those of training.
        self._resuming = resume and self.has_checkpoint()
        rest = super().resume_or_load(path, resume=resume)
        frozen = sorted(set(frozen_tensors(self.model)).intersection(self._missing))
        if frozen and not self._freeze_random:
            raise ConfigError(
                f"{self._loaded or 'MODEL.WEIGHTS is empty, which'} leaves random what training "
                f"does not change: {some(frozen)}; set MODEL.WEIGHTS to weights that have it, as "
                "the files of configs/ do, or both MODEL.BACKBONE.FREEZE_AT 0 and "
                "MODEL.RESNETS.NORM 'GN' or 'BN', of timm's models MODEL.TIMM.FROZEN_BN False "
                "(MODEL.BACKBONE.FREEZE_RANDOM True trains all the same)"
            )
        return rest

    def save(self, name: str, *, resumable: bool = True, **extra: object) -> None:
        """Write ``save_dir/name.pth``; with ``resumable``, make it the file to resume from."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        if names := getattr(self.model, "class_names", None):
            content["class_names"] = list(names)
        if (groups := query_groups(self.model)) > 1:
            content["query_groups"] = groups
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(content | extra, path)
        if resumable:
            self.tag_last_checkpoint(f"{name}.pth")

    def save_periodic(self, iteration: int) -> None:
        """Save the state after ``iteration``."""
        self.save(_PERIODIC.format(iteration), iteration=iteration)

    def save_final(self, iteration: int) -> None:
        """Save the end of training, after ``iteration``, unless it was resumed from."""
        if os.path.basename(self._loaded) != f"{FINAL}.pth":
            self.save(FINAL, iteration=iteration)

    def save_to_resume(self, iteration: int, max_iter: int) -> None:
        """Save a run that stops after ``iteration`` of ``max_iter``, and say how it goes on."""
        if iteration < 0:
            return
        self.save_periodic(iteration)
        logger.warning(
            "stopped after iteration %d of %d; --resume continues from %s.pth",
            iteration + 1,
            max_iter,
            _PERIODIC.format(iteration),
        )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, LAST)
        write_whole(path, lambda file: file.write(last_filename_basename.encode()))

    def _load_file(self, path: str) -> dict:
        self._loaded = path
        return read_tensors(path)

    def _load_model(self, checkpoint: dict) -> None:
        state = checkpoint.pop("model") if self._resuming else pop_weights(checkpoint)
        self._missing = load_state(
            self.model,
            state,
            source=self._loaded,
            strict=self._strict or self._resuming,
            same_queries=self._resuming,
            content=checkpoint,
        )


@dataclass
class BestModel:
    """Writes ``model_best.pth`` whenever an evaluation is better than all before.

    The file itself is never read, as it may be another run's. A run that resumes repeats an
    evaluation that the checkpoint does not know of.

    Attributes:
        checkpointer: writes the file.
        best_metric, best_iter: the best value and its iteration; None before the first.
    """

    checkpointer: SafeCheckpointing
    best_metric: float | None = None
    best_iter: int | None = None

    def offer(self, value: float, iteration: int) -> None:
        """Save the model if ``value``, reached at ``iteration``, is the highest so far."""
        if math.isfinite(value) and (self.best_metric is None or value > self.best_metric):
            self.best_metric, self.best_iter = float(value), int(iteration)
            logger.info("best AP so far: %.3f", value)
            self.checkpointer.save(BEST, resumable=False, iteration=iteration)

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
