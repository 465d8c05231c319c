"""Image files that are programs, that would fill the memory, or that have no pixels."""

import struct
import subprocess
import sys
import zlib

import pytest
from PIL import Image

from dataset_checks.image_files import probe_image
from smca.data.images import read_rgb
from smca.inference.predictor import read_image

# Pillow's, which programs do not show.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def png(*chunks):
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        crc = zlib.crc32(name + data).to_bytes(4, "big")
        parts.append(len(data).to_bytes(4, "big") + name + data + crc)
    return b"".join(parts)


def test_postscript_is_not_run(tmp_path):
    path = tmp_path / "endless.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    with pytest.raises(OSError, match="PostScript, a program"):
        read_rgb(str(path))
    assert "PostScript" in probe_image(str(path), verify=False).fault


def header(width, height):
    return b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\1\0\0\0\0"


def zeros(count):
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(2**20)) for _ in range(count // 2**20)]
    return b"".join([*parts, packer.flush()])


def tiff(width, height):
    """A strip of a few bytes, compressed by LZW."""
    tags = {256: width, 257: height, 258: 8, 259: 5, 262: 1, 273: 8, 277: 1, 278: height, 279: 8}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    return b"II*\0" + struct.pack("<I8xH", 16, len(entries)) + b"".join(entries) + bytes(4)


BOMBS = {
    "png": lambda: png(header(60_000, 60_000), (b"IDAT", zeros(450 * 2**20)), (b"IEND", b"")),
    "gif": lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2",
    "ppm": lambda: b"P5 100000 100000 255\n",
    "tiff": lambda: tiff(60_000, 60_000),
    "text": lambda: png(
        header(1, 1), (b"zTXt", b"a\0\0" + zeros(300 * 2**20)), (b"IDAT", zlib.compress(b"\0\0"))
    ),
}
READ = """
import resource, sys
from smca.data.coco import DatasetError
from smca.data.dataset import EvaluationDataset
from smca.data.images import read_rgb
from smca.engine.guard import guarded

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def program():
    before = used()
    records = [{"file_name": path} for path in sys.argv[1:]]
    dataset = EvaluationDataset(records, lambda record: read_rgb(record["file_name"]))
    for index in range(len(records)):
        try:
            print(dataset[index].size)
        except DatasetError as error:
            print(error)
    print(used() - before)

sys.exit(guarded(program))
"""


def read_apart(*paths):
    """What a program that reads images says of each, and how much memory in MiB they took."""
    command = [sys.executable, "-c", READ, *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (run.returncode, run.stderr) == (0, "")
    *said, memory = run.stdout.splitlines()
    return said, int(memory)


@pytest.mark.slow
def test_bombs_are_named_and_take_no_memory(tmp_path):
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
        assert (tmp_path / name).stat().st_size < 2**19
    said, memory = read_apart(*(tmp_path / name for name in BOMBS))
    for name, line in zip(BOMBS, said, strict=True):
        assert line.startswith(f"cannot read {tmp_path / name}: ")
        limited = "178,956,970 pixels" in line and "PIL.Image.MAX_IMAGE_PIXELS" in line
        assert limited == (name != "text")
    assert memory < 50


@pytest.mark.slow
def test_a_huge_image_under_the_limit_is_read_without_a_warning(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png(header(10_000, 10_000), (b"IDAT", zeros(12 * 2**20)), (b"IEND", b"")))
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    said, memory = read_apart(path)
    assert said == ["(10000, 10000)"]
    # A byte a pixel of the file's, and four of RGB's.
    assert memory < 550


def test_a_limit_that_is_raised_holds(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.new("L", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="more than 200 pixels"):
        read_rgb(str(path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_rgb(str(path)).size == (40, 40)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="is no image"):
        read_image(Image.new("RGB", size))
