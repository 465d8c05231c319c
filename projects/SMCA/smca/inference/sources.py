"""The images that a program looks at, and the files that it draws to.

Images come from files, folders, videos and cameras.
"""

import glob
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from ..data.images import IMAGES, read_rgb
from ..errors import ConfigError

VIDEOS = {".mp4", ".m4v", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".webm", ".wmv"}
# Pictures and videos of these formats are drawn in the same format.
_KEPT = {".jpg", ".jpeg", ".png", ".mp4"}


@dataclass(frozen=True)
class Source:
    """An image, a video or a camera.

    Attributes:
        path: path of an image or a video, or number of a camera.
        output: the picture or video to draw to.
    """

    path: str | int
    output: Path

    @property
    def is_video(self) -> bool:
        return isinstance(self.path, int) or Path(self.path).suffix.lower() in VIDEOS

    @property
    def name(self) -> str:
        return f"camera {self.path}" if isinstance(self.path, int) else self.path


@dataclass(frozen=True)
class Frame:
    """An image of a source.

    Attributes:
        source: the source.
        image: (h, w, 3) uint8 RGB.
        number: index in its video; None for a picture.
        rate: frames a second of the video.
    """

    source: Source
    image: np.ndarray
    number: int | None = None
    rate: float = 0.0


def gather(inputs: Sequence[str], output: str, camera: int | None = None) -> list[Source]:
    """Find the images and videos of paths, folders and patterns, each once.

    Args:
        inputs: images, videos, folders with images directly inside, and patterns such as
            ``photos/**/*.jpg``.
        output: output folder. A file keeps its name there; ``.png`` or ``.mp4`` is added if it has
            another format. Files of the same name keep the folders that tell them apart.
        camera: number of a camera, or None.

    Raises:
        ConfigError: a path or a pattern has no files, or OpenCV is missing for videos.
    """
    found: dict[str, str] = {}
    for text in inputs:
        for path in _files(text):
            found.setdefault(os.path.realpath(path), path)
    paths = list(found.values())
    sources = list(map(Source, paths, _outputs(paths, output)))
    if camera is not None:
        sources.append(Source(camera, Path(output, f"camera{camera}.mp4")))
    if not sources:
        raise ConfigError(
            "there is nothing to look at: name images, videos or folders after --input"
        )
    if any(source.is_video for source in sources):
        opencv()
    return sources


def check_outputs(outputs: Iterable[Path], inputs: Iterable[str], *, overwrite: bool) -> None:
    """Check that no output replaces a file by accident, and make the folders of the outputs.

    Raises:
        ConfigError: an output is an input or another output, or it exists and may not be replaced.
    """
    taken = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.realpath(path) in taken:
            raise ConfigError(f"{path} is an input or another output; name another place for it")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; give --overwrite, or name another place")
        taken.add(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)


def count_frames(sources: Sequence[Source]) -> int | None:
    """The number of images, as far as videos tell it; None with a camera."""
    if any(isinstance(source.path, int) for source in sources):
        return None
    return sum(_video_length(source.name) if source.is_video else 1 for source in sources)


def read_frames(
    sources: Sequence[Source], unreadable: Callable[[Source, str], None], *, grey_bits: int = 0
) -> Iterator[Frame]:
    """Read the images of all sources, one after the other.

    Args:
        sources: the sources; a camera never ends.
        unreadable: called with each source that cannot be read, and the reason.
        grey_bits: of images, see :func:`~smca.data.images.upright_rgb`.
    """
    for source in sources:
        try:
            if source.is_video:
                yield from _video_frames(source)
            else:
                yield Frame(source, np.array(read_rgb(source.name, grey_bits)))
        except OSError as error:
            unreadable(source, str(error))


class FrameWriter:
    """Writes drawn frames to the outputs of their sources."""

    def __init__(self):
        self._video = None

    def write(self, frame: Frame, picture: Image.Image) -> None:
        """Write ``picture``, a drawn frame; all frames of a video come one after the other.

        Raises:
            ConfigError: the video cannot be written.
        """
        path = frame.source.output
        if frame.number is None:
            picture.save(path, quality=95)  # of JPEG
            return
        if frame.number == 0:
            self.close()
            cv2 = opencv()
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._video = cv2.VideoWriter(str(path), codec, frame.rate, picture.size)
            if not self._video.isOpened():
                raise ConfigError(f"{path} cannot be written as a video by this OpenCV")
        self._video.write(np.ascontiguousarray(np.asarray(picture)[..., ::-1]))

    def close(self) -> None:
        """End the last video."""
        if self._video is not None:
            self._video.release()


def opencv() -> ModuleType:
    """Return OpenCV, or raise ConfigError if it is not installed."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ConfigError(
            "videos and cameras need OpenCV: pip install opencv-python-headless"
        ) from error


def _video_length(path: str) -> int:
    cv2 = opencv()
    return max(0, int(cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT)))


def _video_frames(source: Source) -> Iterator[Frame]:
    cv2 = opencv()
    video = cv2.VideoCapture(source.path)
    number = 0
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0  # some files and cameras do not tell theirs
        while (read := video.read())[0]:
            yield Frame(source, np.ascontiguousarray(read[1][..., ::-1]), number, rate)
            number += 1
    finally:
        video.release()
    if number == 0:
        raise OSError("OpenCV finds no frame in it")


def _files(text: str) -> list[str]:
    if os.path.isdir(text):
        found = [entry.path for entry in os.scandir(text) if entry.is_file()]
        found = sorted(path for path in found if Path(path).suffix.lower() in IMAGES)
    elif os.path.exists(text):
        found = [text]
    else:
        found = sorted(filter(os.path.isfile, glob.glob(text, recursive=True)))
    if not found:
        what = "has no images in it" if os.path.isdir(text) else "does not exist"
        raise ConfigError(f"--input {text} {what}")
    return found


def _outputs(paths: Sequence[str], output: str) -> list[Path]:
    """The outputs of files in the folder ``output``; see :func:`gather`."""
    drawn = [Path(os.path.abspath(path) + _added_ending(path)) for path in paths]
    folders: dict[str, list[Path]] = {}
    for path in drawn:
        folders.setdefault(path.name, []).append(path.parent)
    return [
        Path(output, path.relative_to(os.path.commonpath(folders[path.name]))) for path in drawn
    ]


def _added_ending(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix in _KEPT:
        return ""
    return ".mp4" if suffix in VIDEOS else ".png"
