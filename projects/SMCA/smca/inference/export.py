"""Exporting a detector as one file that runs without this package.

The file takes ``images`` (B, 3, H, W), float32 in 0..255, channels red, green, blue, all of one
size and without padding. It gives ``boxes`` (B, D, 4) xyxy in pixels of the images, ``scores``
(B, D) and ``labels`` (B, D), best first, D at most TEST.DETECTIONS_PER_IMAGE.
"""

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..errors import ConfigError, ExportError
from ..modeling.detector import Detector, pixel_statistics
from ..modeling.heads import detect_batch
from ..structures import Size
from .export_check import Difference, Run, compare

INPUT = "images"
OUTPUTS = ("boxes", "scores", "labels")
# The metadata in .pt2 and .ts files, as JSON. ONNX files have a property per entry.
METADATA_FILE = "metadata.json"
# Height and width of the images that a graph is captured with: no two sides of maps are equal.
_EXAMPLE = (288, 416)


class PixelDetector(nn.Module):
    """A detector from pixels to detections, as the module's docstring describes a file."""

    def __init__(self, cfg: CfgNode, detector: Detector):
        """``detector``, of either host and on the CPU, is put into evaluation mode."""
        super().__init__()
        self.detector = detector
        mean, std = pixel_statistics(cfg)
        self.register_buffer("pixel_mean", mean)
        self.register_buffer("pixel_std", std)
        self.reverse_channels = cfg.INPUT.FORMAT == "BGR"
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self.softmax = cfg.MODEL.SMCA.LOSS.CLASSIFICATION == "softmax"
        self.eval()

    @property
    def least_side(self) -> int:
        """The least height and width in pixels that torch.export takes.

        All maps must have more than one row and column. The other formats have no such bound.
        """
        return self.detector.strides[-1] + 1

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of ``images``; see the module's docstring."""
        if self.reverse_channels:
            images = images.flip(1)
        images = (images - self.pixel_mean) / self.pixel_std
        size = images.shape[-2], images.shape[-1]
        predictions = self.detector.predict(images, [size])
        found = detect_batch(
            predictions, [size], max_detections=self.max_detections, softmax=self.softmax
        )
        return found.boxes, found.scores, found.labels


def metadata(cfg: CfgNode, class_names: Sequence[str], size: Size | None = None) -> dict:
    """The facts that a program needs to use an exported model as it was tested.

    ``size`` is the (h, w) of all images, or None for images of any size.
    """
    return {
        "description": " ".join(__doc__.split("\n\n", 1)[1].split()).replace("``", ""),
        "class_names": list(class_names),
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "size": None if size is None else list(size),
    }


def export(
    model: PixelDetector,
    path: Path,
    *,
    form: str,
    metadata: dict,
    opset: int | None = None,
    checks: Sequence[tuple[int, int, int]] = (),
) -> list[Difference]:
    """Write ``path``, whole and checked or not at all.

    Args:
        model: the model to export.
        path: the file, which is replaced if it exists.
        form: a key of ``FORMATS``.
        metadata: the dict of :func:`metadata`. Its size fixes the size of the file's images.
        opset: ONNX opset; by default that of PyTorch's exporter.
        checks: batches (B, H, W) on which the written file is compared with ``model``.

    Returns:
        the difference on each batch.

    Raises:
        ExportError: packages are missing, the format cannot hold the model, or the file differs
            from the model.
    """
    chosen = FORMATS[form]
    needed = chosen.packages if checks else chosen.packages[:2]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ExportError(
            f"the format {form!r} needs {', '.join(missing)}: pip install {' '.join(missing)}, "
            "or pip install -e '.[export]' in this repository"
        )
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        try:
            with torch.no_grad(), _silence():
                chosen.write(model, temporary, metadata, opset)
        except ConfigError:  # the model itself refuses to run
            raise
        except OSError as error:
            raise ExportError(f"{path} cannot be written: {error}") from error
        except Exception as error:  # the exporters' errors have no base class of their own
            raise ExportError(_why(model, form, metadata["size"], error)) from error
        with _silence():
            run = chosen.read(temporary) if checks else None
        found = [compare(model, run, shape) for shape in checks]
        if bad := [each for each in found if not each.passes]:
            raise ExportError(
                f"the {form} file is not the model: " + "; ".join(str(each) for each in bad)
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def _why(model: PixelDetector, form: str, size: Size | None, error: Exception) -> str:
    parts = dict(model.detector.named_children())
    wanted = (parts.get(name) for name in ("backbone", "towers", "encoder", "decoder"))
    names = ", ".join(type(part).__name__ for part in wanted if part is not None)
    lines = str(error).strip().splitlines() or ["no reason given"]
    reason = f"{type(error).__name__}: {lines[0]}"
    remedy = "" if size else "; with images of one size, --size HEIGHT WIDTH, it may be possible"
    remedy += f"; this torch is {torch.__version__}, and newer ones export more"
    return f"a model of {names} cannot be exported as {form!r}: {reason}{remedy}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence the exporters, which warn about unused packages and about what is checked here."""
    for name in ("torch.onnx", "torch.export", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _capture(model: PixelDetector, size: Size | None) -> torch.export.ExportedProgram:
    """The model's graph for any number of images, of any size or of ``size``."""
    dynamic = {0: torch.export.Dim("batch")}
    if size is None:
        dynamic[2] = torch.export.Dim("height", min=model.least_side)
        dynamic[3] = torch.export.Dim("width", min=model.least_side)
    images = torch.zeros(2, 3, *(size or _EXAMPLE))
    shapes = {INPUT: dynamic}
    return torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)


def _write_onnx(model: PixelDetector, path: Path, metadata: dict, opset: int | None) -> None:
    names = {0: "batch"} if metadata["size"] else {0: "batch", 2: "height", 3: "width"}
    program = torch.onnx.export(
        _capture(model, metadata["size"]),
        dynamo=True,
        dynamic_shapes={INPUT: names},
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        opset_version=opset,
        verbose=False,
    )
    program.model.producer_name = "smca"
    program.model.doc_string = metadata["description"]
    program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = session.run(OUTPUTS, {INPUT: images.numpy()})
        return tuple(map(torch.from_numpy, found))

    return run


def _write_export(model: PixelDetector, path: Path, metadata: dict, _opset: None) -> None:
    files = {METADATA_FILE: json.dumps(metadata)}
    torch.export.save(_capture(model, metadata["size"]), path, extra_files=files)


def _write_torchscript(model: PixelDetector, path: Path, metadata: dict, _opset: None) -> None:
    images = torch.zeros(2, 3, *(metadata["size"] or _EXAMPLE))
    traced = torch.jit.trace(model, images, check_trace=False)
    torch.jit.save(traced, path, _extra_files={METADATA_FILE: json.dumps(metadata)})


class Format(NamedTuple):
    """A file format: the ending of its files, and functions that write and read models."""

    suffix: str
    write: Callable[[PixelDetector, Path, dict, int | None], None]  # the last is an ONNX opset
    read: Callable[[Path], Run]
    packages: tuple[str, ...] = ()  # beside torch: two for writing, then those for reading


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "export": Format(".pt2", _write_export, lambda path: torch.export.load(path).module()),
    "torchscript": Format(".ts", _write_torchscript, torch.jit.load),
}
