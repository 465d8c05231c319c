"""Putting a checkpoint into a model, and the checkpointer of both hosts."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn

from ..config import ConfigError
from .files import CheckpointError, damage, read_checkpoint, write_checkpoint, write_whole

logger = logging.getLogger(__name__)

# Tensors whose shapes depend on the number of classes, and the key that sets it; the second are
# Faster R-CNN's.
CLASS_HEADS = {
    "heads.class_head.": "MODEL.SMCA.NUM_CLASSES",
    "roi_heads.box_predictor.": "MODEL.ROI_HEADS.NUM_CLASSES",
}
# Where Detectron2's feature pyramid has its ResNet.
FPN_RESNET = "backbone.bottom_up."


def load(detector: nn.Module, path: str | os.PathLike, *, whole: bool = False) -> dict:
    """Load any checkpoint file of the project, or a ResNet's, into ``detector``.

    Of a run that averages its weights the averaged ones are taken.

    Args:
        detector: the model, of either host.
        path: see :func:`~smca.checkpoints.files.read_checkpoint`.
        whole: every tensor of the model must be in the file.

    Returns:
        what else the file holds.

    Raises:
        CheckpointError: the file does not fit; the message names the tensors.
    """
    content = read_checkpoint(path)
    load_state(detector, pop_weights(content), source=os.fspath(path), whole=whole)
    return content


def pop_weights(content: dict) -> dict[str, Tensor]:
    """Take out of a checkpoint the weights that a model is used with.

    They are the averaged ones, ``"ema"``, where there are such, else ``"model"``; both go.
    """
    model, averaged = content.pop("model"), content.pop("ema", None)
    return model if averaged is None else averaged


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str, whole: bool) -> None:
    """:func:`load` for tensors that have been read already."""
    own = model.state_dict()
    resnet = FPN_RESNET if _has(own, FPN_RESNET) else "backbone."
    if not _has(state, resnet):
        state = {name.replace("backbone.", resnet, 1): tensor for name, tensor in state.items()}
    wrong = {
        name: (tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    }
    listed = "; ".join(
        f"{name} has shape {theirs}, the model wants {ours}"
        for name, (theirs, ours) in list(wrong.items())[:5]
    )
    keys = {key for head, key in CLASS_HEADS.items() if _has(wrong, head)}
    only_classes = all(name.startswith(tuple(CLASS_HEADS)) for name in wrong)
    if wrong and (whole or not only_classes):
        remedy = ", ".join(keys) if only_classes else "the config file"
        raise CheckpointError(f"{source} does not fit the model, check {remedy}: {listed}")
    if wrong:
        logger.warning("%s: class head not loaded, it starts anew: %s", source, listed)
        state = {name: tensor for name, tensor in state.items() if name not in wrong}
    rounded = [n for n, t in state.items() if n in own and _is_rounded(t, own[n])]
    if rounded:
        raise CheckpointError(
            f"{source} has whole numbers for {_some(rounded)}, perhaps of a model that was "
            "quantised; take the checkpoint from before"
        )
    # A frozen batch norm has no such counter.
    unknown = [n for n in state if n not in own and not n.endswith("num_batches_tracked")]
    missing = [n for n in own if n not in state and n not in wrong]
    if len(missing) == len(own):
        remedy = ""
        if _has(state, "transformer."):
            remedy = "; tools/convert_checkpoint.py reads what others released"
        raise CheckpointError(
            f"{source} holds none of the model's tensors, but {_some(unknown)}{remedy}"
        )
    if missing and whole:
        raise CheckpointError(f"{source} lacks {_some(missing)}")
    if all(name.startswith(resnet) for name in state):
        lacking = [name for name in missing if name.startswith(resnet)]
        # Stages that the model has no use for are not built.
        stages = {_stage(name, resnet) for name in own}
        besides = [name for name in unknown if _stage(name, resnet) in stages]
        if lacking or besides:
            raise CheckpointError(
                f"{source} holds another backbone, check MODEL.RESNETS.DEPTH: "
                f"it lacks {_some(lacking)}, and has {_some(besides)} besides"
            )
        unknown = []
        logger.info("%s: backbone loaded, the rest starts anew", source)
    elif missing:
        logger.warning("%s lacks %s; they start anew", source, _some(missing))
    if unknown:
        logger.warning("%s has tensors the model does not know: %s", source, _some(unknown))
    model.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False)


def _is_rounded(tensor: Tensor, wanted: Tensor) -> bool:
    return wanted.is_floating_point() and not tensor.is_floating_point()


def _has(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def _stage(name: str, resnet: str) -> str:
    """``res4`` of ``backbone.res4.0.conv1.weight``."""
    return name.removeprefix(resnet).partition(".")[0]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more


@contextmanager
def downloading(path: str) -> Iterator[None]:
    """A block in which a file is had from a network.

    Raises:
        CheckpointError: it cannot be had.
    """
    try:
        yield
    except (OSError, AssertionError) as error:  # fvcore asserts that it knows such paths
        raise CheckpointError(
            f"{path} cannot be downloaded ({error}); download it by other means, and name the file"
        ) from error


class SafeCheckpointing(Checkpointer):
    """fvcore's checkpointer with whole files, safe reading and clear refusals.

    It stands before Detectron2's checkpointer in the other host's class.

    Attributes:
        whole: every tensor of the model must be in the file that is loaded.
        resuming: the weights that training goes on with are loaded, and not their average, which
            stays in what ``load`` returns.
        loaded: path of the file that was loaded last; empty before the first.
        class_names: of the model's classes, by contiguous index; saved where they are known.
    """

    whole = False
    resuming = False
    loaded = ""
    class_names: Sequence[str] | None = None

    def load(self, path: str, *args, **kwargs) -> dict:
        if path and "://" in path:
            with downloading(path):
                return super().load(path, *args, **kwargs)
        if path and not os.path.isfile(path):
            what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
            raise FileNotFoundError(f"checkpoint {path!r} (MODEL.WEIGHTS) {what}")
        return super().load(path, *args, **kwargs)

    def get_checkpoint_file(self) -> str:
        """The newest whole checkpoint to resume from; damaged ones are passed over and named.

        Raises:
            CheckpointError: none is whole.
        """
        tag = Path(self.save_dir, "last_checkpoint")
        # A file beside it, whatever it says; where it says nothing it is itself what is damaged.
        name = os.path.basename(tag.read_text(encoding="utf-8", errors="replace").strip())[:255]
        name = name if name and name.isprintable() else tag.name
        others = sorted(glob.glob(os.path.join(glob.escape(self.save_dir), "model_[0-9]*.pth")))
        if name.startswith("model_"):
            # Later ones are another run's, which was here before.
            others = [path for path in others if os.path.basename(path) < name]
        faults = {}
        for path in dict.fromkeys([os.path.join(self.save_dir, name), *reversed(others)]):
            fault = damage(path)
            if fault is None:
                return path
            faults[path] = fault
            logger.warning("%s is damaged (%s); the checkpoint before it is taken", path, fault)
        raise CheckpointError(
            f"{self.save_dir} has no whole checkpoint to resume from: "
            + "; ".join(f"{os.path.basename(path)}: {fault}" for path, fault in faults.items())
        )

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
        return super().resume_or_load(path, resume=resume)

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
        if os.path.basename(self.loaded) != "model_final.pth":
            self.save("model_final", iteration=iteration)

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

    def load_to_evaluate(self, weights: str, *, resume: bool) -> None:
        """Load ``weights``, or with ``resume`` the last checkpoint there is, whole.

        Raises:
            ConfigError: neither is there.
            CheckpointError: the file does not fit the model.
        """
        if not weights and not (resume and self.has_checkpoint()):
            raise ConfigError(
                "nothing to evaluate: set MODEL.WEIGHTS to a checkpoint, or give --resume to take "
                f"the last one in OUTPUT_DIR ({self.save_dir})"
            )
        self.whole = True
        if resume and self.has_checkpoint():
            weights = self.get_checkpoint_file()
        self.load(weights, checkpointables=[])

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_whole(path, lambda file: file.write(last_filename_basename.encode()))

    def _load_file(self, path: str) -> dict:
        self.loaded = path
        return {**read_checkpoint(path), "source": path}

    def _load_model(self, checkpoint: dict) -> None:
        state = checkpoint.pop("model") if self.resuming else pop_weights(checkpoint)
        load_state(self.model, state, source=checkpoint.pop("source"), whole=self.whole)
