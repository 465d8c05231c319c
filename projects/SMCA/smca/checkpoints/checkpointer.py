"""The checkpointer of both hosts: whole files, safe reading and clear refusals."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fvcore.common.checkpoint import Checkpointer

from ..errors import CheckpointError, ConfigError
from .fetching import fetch
from .files import damage, read_checkpoint, write_checkpoint, write_whole
from .loading import frozen_tensors, load_state, pop_weights, some

logger = logging.getLogger(__name__)

# What training ends with.
FINAL = "model_final"


@contextlib.contextmanager
def downloading(path: str) -> Iterator[None]:
    """A block in which a file is had by an address of another kind than :func:`fetch` knows.

    Raises:
        CheckpointError: it cannot be had.
    """
    try:
        yield
    except (OSError, AssertionError) as error:  # fvcore asserts that it knows such paths
        raise CheckpointError(
            f"MODEL.WEIGHTS: {path} cannot be fetched ({error}); fetch it by other means, and set "
            "MODEL.WEIGHTS to the path of the file"
        ) from error


def require_file(path: str) -> None:
    """
    Raises:
        FileNotFoundError: the path of a checkpoint, and no address, where there is no file.
    """
    if "://" not in path and not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise FileNotFoundError(f"checkpoint {path!r} (MODEL.WEIGHTS) {what}")


def has_checkpoint(folder: str) -> bool:
    """Whether a run has left a checkpoint in its folder."""
    names = ("last_checkpoint", f"{FINAL}.pth")
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def newest_checkpoint(folder: str) -> str:
    """The newest whole checkpoint of a run's folder; damaged ones are passed over and named.

    Raises:
        CheckpointError: none is whole.
    """
    tag = Path(folder, "last_checkpoint")
    # A file beside it, whatever it says; where it says nothing it is itself what is damaged.
    name = f"{FINAL}.pth"
    if tag.exists():
        name = os.path.basename(tag.read_text(encoding="utf-8", errors="replace").strip())[:255]
        name = name if name and name.isprintable() else tag.name
    others = sorted(glob.glob(os.path.join(glob.escape(folder), "model_[0-9]*.pth")))
    if name.startswith("model_"):
        # Later ones are another run's, which was here before.
        others = [path for path in others if os.path.basename(path) < name]
    faults = {}
    for path in dict.fromkeys([os.path.join(folder, name), *reversed(others)]):
        fault = damage(path)
        if fault is None:
            return path
        faults[path] = fault
        logger.warning("%s is damaged (%s); the checkpoint before it is taken", path, fault)
    raise CheckpointError(
        f"{folder} has no whole checkpoint: "
        + "; ".join(f"{os.path.basename(path)}: {fault}" for path, fault in faults.items())
    )


class SafeCheckpointing(Checkpointer):
    """fvcore's checkpointer with whole files, safe reading and clear refusals.

    It stands before Detectron2's checkpointer in the other host's class.

    Attributes:
        whole: every tensor of the model must be in the file that is loaded.
        resuming: the weights that training goes on with are loaded, and not their average, which
            stays in what ``load`` returns.
        loaded: path of the file that was loaded last; empty before the first.
        missing: names of the model's tensors that the last file loaded did not have.
        freeze_random: train although tensors that training does not change are random.
        class_names: of the model's classes, by contiguous index; saved where they are known.
    """

    whole = False
    resuming = False
    loaded = ""
    missing: Sequence[str] = ()
    freeze_random = False
    class_names: Sequence[str] | None = None

    def load(self, path: str, *args, **kwargs) -> dict:
        if not path:
            self.missing = list(self.model.state_dict())
            return super().load(path, *args, **kwargs)
        path = fetch(path)
        require_file(path)
        with downloading(path) if "://" in path else contextlib.nullcontext():
            return super().load(path, *args, **kwargs)

    def get_checkpoint_file(self) -> str:
        """See :func:`newest_checkpoint`."""
        return newest_checkpoint(self.save_dir)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        if resume and self.save_dir and self.save_to_disk:
            # A run that was killed leaves what it was writing.
            for name in ("model_*.pth.tmp", "last_checkpoint.tmp"):
                for unfinished in Path(self.save_dir).glob(name):
                    unfinished.unlink(missing_ok=True)
        elif self.save_dir and not resume and self.has_checkpoint():
            logger.warning(
                "%s has a run's checkpoints, which this one replaces; --resume would have gone on "
                "from them",
                self.save_dir,
            )
        # A run goes on with all it had; only weights to start from may lack something.
        self.resuming = resume and self.has_checkpoint()
        self.whole = self.whole or self.resuming
        rest = super().resume_or_load(path, resume=resume)
        if not self.freeze_random and (frozen := self._frozen_at_random()):
            raise ConfigError(
                f"{self.loaded or 'MODEL.WEIGHTS is empty, which'} leaves random what training "
                f"does not change: {some(frozen)}; set MODEL.WEIGHTS to weights that have it, as "
                "the files of configs/ do, or both MODEL.BACKBONE.FREEZE_AT 0 and "
                "MODEL.RESNETS.NORM 'GN' or 'BN' "
                "(MODEL.BACKBONE.FREEZE_RANDOM True trains all the same)"
            )
        return rest

    def _frozen_at_random(self) -> list[str]:
        return sorted(set(frozen_tensors(self.model)).intersection(self.missing))

    def save(self, name: str, *, resumable: bool = True, **extra: object) -> None:
        """Write ``save_dir/name.pth``; with ``resumable``, make it the one to resume from."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        if self.class_names is not None:
            content["class_names"] = list(self.class_names)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(content | extra, path)
        if resumable:
            self.tag_last_checkpoint(f"{name}.pth")

    def save_final(self, iteration: int) -> None:
        """Save what training ends with after ``iteration``, unless that has been resumed from."""
        if os.path.basename(self.loaded) != f"{FINAL}.pth":
            self.save(FINAL, iteration=iteration)

    def save_to_resume(self, iteration: int, max_iter: int) -> None:
        """Save a run that stops after ``iteration`` of ``max_iter``, and say how it goes on."""
        if iteration < 0:
            return
        name = f"model_{iteration:07d}"
        self.save(name, iteration=iteration)
        logger.warning(
            "stopped after iteration %d of %d; --resume continues from %s.pth",
            iteration + 1,
            max_iter,
            name,
        )

    def load_to_evaluate(self, weights: str) -> None:
        """Load ``weights`` whole.

        Raises:
            CheckpointError: the file does not fit the model.
        """
        self.whole = True
        self.load(weights, checkpointables=[])

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_whole(path, lambda file: file.write(last_filename_basename.encode()))

    def _load_file(self, path: str) -> dict:
        self.loaded = path
        return {**read_checkpoint(path), "source": path}

    def _load_model(self, checkpoint: dict) -> None:
        state = checkpoint.pop("model") if self.resuming else pop_weights(checkpoint)
        self.missing = load_state(
            self.model, state, source=checkpoint.pop("source"), whole=self.whole
        )
