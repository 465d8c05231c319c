"""Image files of every kind, whole and damaged: the pixels that were drawn, or an error."""

import io
import zlib

import numpy as np
import pytest
from engines import HAS_DETECTRON2
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import smca
from dataset_checks.image_files import probe_image
from smca.data.dataset import EvaluationDataset
from smca.data.images import read_rgb
from smca.data.mapper import DetrMapper
from smca.errors import DatasetError
from smca.inference.predictor import read_image

# Pillow's, which programs do not show.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
ORIENTATION = 0x0112


def grey(values):
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def seen(pixels):
    return grey(pixels[..., 0] | 2)


def deep(dtype):
    """Grey values, of which the brightest one tells how many bits are used."""

    def make(pixels):
        values = (pixels[..., 0] | 2).astype(dtype) * dtype(256) + pixels[..., 1]
        bits = next(bits for bits in range(9, 17) if values.max() < 2**bits)
        return Image.fromarray(values), grey(values // 2 ** (bits - 8))

    return make


def from_cmyk(inks):
    left = 255.0 - inks
    return left[..., :3] * left[..., 3:] / 255


def from_ycbcr(channels):
    y, cb, cr = np.moveaxis(channels.astype(float) - [0, 128, 128], -1, 0)
    rgb = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    return np.stack(rgb, axis=-1).clip(0, 255)


def indexed(index, palette):
    image = Image.fromarray(index)
    image.putpalette(palette.flatten().tolist())
    return image


# By mode: the image of pixels (h, w, 4), and what it is as RGB.
MODES = {
    "1": lambda p: (Image.fromarray(p[..., 0] > 127), grey((p[..., 0] > 127) * 255)),
    "L": lambda p: (Image.fromarray(p[..., 0]), grey(p[..., 0])),
    "LA": lambda p: (Image.fromarray(p[..., :2]), grey(p[..., 0])),
    "P": lambda p: (indexed(p[..., 0] % 16, PALETTE), PALETTE[p[..., 0] % 16]),
    "RGB": lambda p: (Image.fromarray(p[..., :3]), p[..., :3]),
    "RGBA": lambda p: (Image.fromarray(p), p[..., :3]),
    # No value is so low that all may be black.
    "I;16": deep(np.uint16),
    "I": deep(np.int32),
    "F": lambda p: (Image.fromarray((p[..., 0] | 2).astype(np.float32)), seen(p)),
    "CMYK": lambda p: (Image.fromarray(p, "CMYK"), from_cmyk(p)),
    "YCbCr": lambda p: (Image.fromarray(p[..., :3], "YCbCr"), from_ycbcr(p[..., :3])),
}
PALETTE = np.random.default_rng(1).integers(0, 256, (16, 3), dtype=np.uint8)
FORMATS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "GIF": ["1", "L", "P"],
    "PPM": ["1", "L", "RGB", "I"],
}
# Of the values of EXIF's orientation: how the pixels that are stored are shown.
SHOWN = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
SIZES = st.one_of(
    *[st.tuples(st.integers(1, 24), st.integers(1, 24))] * 12,
    st.sampled_from([(1, 1), (50, 4000), (4000, 50), (1, 4000), (4000, 1)]),
)


@st.composite
def files(draw, sizes=SIZES):
    """What a file holds, the pixels (h, w, 3) it shows, and how far they may be off."""
    kind = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[kind]))
    h, w = draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # JPEG's losses are small where the colour is one.
    shape = (1, 1, 4) if kind == "JPEG" else (h, w, 4)
    pixels = np.broadcast_to(rng.integers(0, 256, shape, dtype=np.uint8), (h, w, 4)).copy()
    image, shown = MODES[mode](pixels)
    options = {}
    if kind == "JPEG":
        options = {"quality": 100, "subsampling": 0, "progressive": draw(st.booleans())}
    elif kind == "WEBP":
        options = {"lossless": True, "exact": True, "quality": 0, "method": 0}
    elif kind == "TIFF":
        options["compression"] = draw(st.sampled_from([None, "tiff_lzw", "tiff_adobe_deflate"]))
    elif mode == "P" and kind in ("PNG", "GIF"):
        see_through = [None, 3] + [bytes(range(16))] * (kind == "PNG")
        options["transparency"] = draw(st.sampled_from(see_through))
    if kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        orientation = draw(st.integers(1, 8) if kind == "TIFF" else st.integers(0, 9))
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
        shown = SHOWN.get(orientation, lambda stored: stored)(shown)
        if kind != "TIFF" and draw(st.integers(0, 3)) == 0:
            rubbish = draw(st.binary(max_size=40))
            options["exif"] = b"Exif\0\0" + rubbish
            shown = None if rubbish[:2] in (b"II", b"MM") else MODES[mode](pixels)[1]
    content = io.BytesIO()
    image.save(content, kind, **options)
    lossy = kind == "JPEG" or mode in ("CMYK", "YCbCr")
    return content.getvalue(), shown, 4 if kind == "JPEG" else int(lossy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def mappers():
    """Of both hosts: maps a record to pixels (3, h, w), unchanged but for the order."""
    cfg = smca.get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    native = DetrMapper.from_config(cfg, is_train=False)
    found = [lambda record: native(record).image]
    if HAS_DETECTRON2:
        from smca.d2 import DetrDatasetMapper

        detectron2 = DetrDatasetMapper(is_train=False, augmentations=[], image_format="BGR")
        found.append(lambda record: detectron2(record)["image"])
    return found


def record_of(path, height, width):
    return {
        "file_name": str(path),
        "image_id": 1,
        "height": height,
        "width": width,
        "annotations": [],
    }


@pytest.mark.slow
@settings(max_examples=1200)
@given(files())
def test_every_image_becomes_its_pixels_in_both_hosts(folder, mappers, file):
    content, shown, tolerance = file
    path = folder / "image"
    path.write_bytes(content)
    found = np.asarray(read_rgb(str(path)))
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    if shown is not None:
        assert found.shape == shown.shape
        assert np.abs(found.astype(float) - shown).max() <= tolerance
    height, width = found.shape[:2]
    for mapper in mappers:
        np.testing.assert_array_equal(
            mapper(record_of(path, height, width)).numpy(), found.transpose(2, 0, 1)[::-1]
        )
    for verify in (False, True):
        assert probe_image(str(path), verify=verify).size == (width, height)
    with Image.open(io.BytesIO(content)) as opened:
        np.testing.assert_array_equal(np.asarray(read_image(opened)), found)


def damaged(draw, content):
    content = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 8]))):
        place = draw(st.integers(0, len(content)))
        how = draw(st.integers(0, 3))
        if how == 0:
            content = content[:place]
        elif how == 1:
            content[place:place] = draw(st.binary(max_size=8))
        elif place < len(content):
            content[place] = (
                content[place] ^ (1 << draw(st.integers(0, 7)))
                if how == 2
                else draw(st.sampled_from([0, 1, 127, 128, 255]))
            )
    return bytes(content)


@st.composite
def damaged_files(draw):
    # Of small files much is header.
    content, _, _ = draw(files(st.tuples(st.integers(1, 12), st.integers(1, 12))))
    return damaged(draw, content)


@pytest.mark.slow
@settings(max_examples=1500)
@given(damaged_files())
@example(b"")
@example(b"\x89PNG\r\n\x1a\n")
@example(b"P1\n13\x7f9 4\n")  # Pillow: ValueError
@example(b"\x89PNG\r\n\x1a\n\0\0\0\2IHDR\0\0" + zlib.crc32(b"IHDR\0\0").to_bytes(4, "big"))
@example(b"qoif\0\0\0\x04\0\0\0\x04\x03\0")  # Pillow: ValueError
def test_damaged_files_are_images_or_named_errors(folder, mappers, content):
    path = folder / "damaged"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        # Less to decode where damage has made an image large.
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 2**18)
        check_damaged(path, mappers)


def check_damaged(path, mappers):
    try:
        height, width = np.asarray(read_rgb(str(path))).shape[:2]
    except OSError as error:
        assert str(error)
        height = width = 1
    else:
        assert probe_image(str(path), verify=True).size == (width, height)
    header = probe_image(str(path), verify=False)
    assert (header.size is None) == bool(header.fault)
    for mapper in mappers:
        try:
            sample = EvaluationDataset([record_of(path, height, width)], mapper)[0]
        except DatasetError as error:
            assert f"cannot read {path}: " in str(error)
        else:
            assert sample.shape == (3, height, width)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_rubbish_in_exif_makes_no_image_unreadable(folder, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = folder / "rubbish"
    Image.fromarray(pixels).save(path, kind, lossless=True, exif=b"Exif\0\0rubbish")
    np.testing.assert_array_equal(np.asarray(read_rgb(str(path))), pixels)
