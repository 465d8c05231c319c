"""Where pictures come from and go to: files, folders, videos and cameras."""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from ..data.images import read_rgb
from ..errors import ConfigError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
VIDEOS = {".mp4", ".m4v", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".webm", ".wmv"}
# What is written in the format it was read in.
_KEPT = {".jpg", ".jpeg", ".png", ".mp4"}
# In each folder written to: the names of what these functions wrote.
WRITTEN = ".smca_demo"


@dataclass(frozen=True)
class Source:
    """Something to look at.

    Attributes:
        path: of an image or a video; or the number of a camera.
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
        source: where it is from.
        image: (h, w, 3) uint8 RGB.
        number: in its video, from 0; None for a picture.
        rate: frames a second of the video.
    """

    source: Source
    image: np.ndarray
    number: int | None = None
    rate: float = 0.0


def gather(inputs: Sequence[str], output: str, camera: int | None = None) -> list[Source]:
    """The images and videos of paths, folders and patterns, each once.

    Args:
        inputs: images and videos; folders, of which the images directly inside are taken; patterns
            such as ``photos/**/*.jpg``.
        output: folder. A file keeps its name there, with ``.png`` or ``.mp4`` added when it is of
            another format. Files of the same name keep the folders that tell them apart.
        camera: its number, or None.

    Raises:
        ConfigError: a path or a pattern without files, or no OpenCV for videos.
    """
    paths: dict[str, str] = {}
    for text in inputs:
        for path in _files(text):
            paths.setdefault(os.path.realpath(path), path)
    sources = [
        Source(path, Path(output) / name)
        for path, name in zip(paths.values(), _distinct_names(list(paths)), strict=True)
    ]
    if camera is not None:
        sources.append(Source(camera, Path(output) / f"camera{camera}.mp4"))
    if not sources:
        raise ConfigError("there is nothing to look at: name images, videos or folders of images")
    if any(source.is_video for source in sources):
        opencv()
    return sources


def claim(outputs: Sequence[Path], inputs: Sequence[str | os.PathLike]) -> None:
    """Make the folders of ``outputs``, and note that these files are the program's own.

    Raises:
        ConfigError: one of ``outputs`` is one of ``inputs``, is named twice, exists and was not
            written by this program, or cannot be written.
    """
    read = {os.path.realpath(path) for path in inputs}
    seen = set()
    for path in outputs:
        place = os.path.realpath(path)
        if place in read:
            raise ConfigError(f"{path} is an input, which stays as it is; name another output")
        if place in seen:
            raise ConfigError(f"{path} would be written twice; name another output")
        seen.add(place)
    for path in outputs:
        record = path.parent / WRITTEN
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            written = record.read_text().splitlines() if record.exists() else []
            if path.exists() and path.name not in written:
                raise ConfigError(
                    f"{path} exists and was not written by this program; name another output"
                )
            if path.name not in written:
                record.write_text("\n".join([*written, path.name, ""]))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}") from error


def count_frames(sources: Sequence[Source]) -> int | None:
    """How many images these are, as far as the files say; None for a camera."""
    if any(isinstance(source.path, int) for source in sources):
        return None
    count = 0
    for source in sources:
        if source.is_video:
            cv2 = opencv()
            video = cv2.VideoCapture(source.path)
            count += max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
            video.release()
        else:
            count += 1
    return count


def read_frames(
    sources: Sequence[Source], unreadable: Callable[[Source, str], None]
) -> Iterator[Frame]:
    """The images of all sources, one after the other.

    Args:
        sources: of which a camera never ends.
        unreadable: is told which file cannot be read, and why; the others go on.
    """
    for source in sources:
        if source.is_video:
            yield from _video_frames(source, unreadable)
            continue
        try:
            image = np.array(read_rgb(source.name))
        except OSError as error:
            unreadable(source, str(error) or type(error).__name__)
        else:
            yield Frame(source, image)


class FrameWriter:
    """Writes drawn frames where their sources say; a context that finishes the last video."""

    def __init__(self):
        self._video = None
        self._path: Path | None = None

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self._finish()

    def write(self, frame: Frame, picture: Image.Image) -> None:
        """
        Args:
            frame: frames of a video come one after the other.
            picture: the frame as drawn, of one size in all of a video.

        Raises:
            ConfigError: the video cannot be written.
        """
        path = frame.source.output
        if self._path not in (None, path):
            self._finish()
        if frame.number is None:
            picture.save(path, quality=95)  # of JPEG
            return
        if self._video is None:
            cv2 = opencv()
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._path = path
            self._video = cv2.VideoWriter(str(path), codec, frame.rate, picture.size)
            if not self._video.isOpened():
                raise ConfigError(f"{path} cannot be written as a video by this OpenCV")
        self._video.write(np.ascontiguousarray(np.asarray(picture)[..., ::-1]))

    def _finish(self) -> None:
        if self._video is not None:
            self._video.release()
        self._video = self._path = None


def opencv() -> ModuleType:
    """OpenCV, for videos and cameras.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ConfigError(
            "videos and cameras need OpenCV: pip install opencv-python-headless"
        ) from error


def _video_frames(source: Source, unreadable: Callable[[Source, str], None]) -> Iterator[Frame]:
    cv2 = opencv()
    video = cv2.VideoCapture(source.path)
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0  # where the file or the camera does not say
        number = 0
        while (read := video.read())[0]:
            yield Frame(source, np.ascontiguousarray(read[1][..., ::-1]), number, rate)
            number += 1
    finally:
        video.release()
    if number == 0:
        unreadable(source, "OpenCV finds no frame in it")


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


def _distinct_names(paths: Sequence[str]) -> list[str]:
    """File names; and of those that several have, the paths below their common folder."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(_output_name(path), []).append(os.path.dirname(os.path.abspath(path)))
    names = []
    for path in paths:
        name = _output_name(path)
        common = os.path.commonpath(folders[name])
        below = os.path.relpath(os.path.dirname(os.path.abspath(path)), common)
        names.append(os.path.join(below, name) if len(folders[name]) > 1 else name)
    return names


def _output_name(path: str) -> str:
    name, suffix = Path(path).name, Path(path).suffix.lower()
    if suffix in _KEPT:
        return name
    return name + (".mp4" if suffix in VIDEOS else ".png")
