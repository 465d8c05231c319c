import io
import logging
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dataset_checks.image_files import probe_image
from smca.data.dataset import (
    EvaluationDataset,
    PackedRecords,
    TrainingDataset,
)
from smca.data.images import read_rgb
from smca.data.sampler import Draw
from smca.errors import DatasetError


def image_id(record):
    """A mapper that reads the image and draws from all three generators."""
    read_rgb(record["file_name"])
    return record["image_id"], random.random(), np.random.rand(), torch.rand(()).item()


@pytest.fixture
def records(tmp_path):
    """Five images, of which 1 is truncated, 2 is text and 3 is missing."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for index in (0, 1, 4):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.png").write_text("not an image")
    return [{"file_name": str(tmp_path / f"{i}.png"), "image_id": i} for i in range(5)]


def test_training_goes_on_with_the_next_readable_image(records, caplog):
    dataset = TrainingDataset(records, image_id)
    with caplog.at_level(logging.WARNING):
        found = [dataset[Draw(index, 1)][0] for index in (0, 1, 2, 3, 4, 1, 2)]
    assert found == [0, 4, 4, 4, 4, 4, 4]
    assert len(caplog.messages) == 3, "one warning a file"
    for index in (1, 2, 3):
        assert any(f"{index}.png" in message for message in caplog.messages)
    with pytest.raises(DatasetError, match="none of the 3"):
        TrainingDataset(records[1:4], image_id)[Draw(2, 1)]


def test_evaluation_stops_at_an_unreadable_image(records):
    dataset = EvaluationDataset(records, image_id)
    assert dataset[0][0] == 0
    for index in (1, 2, 3):
        with pytest.raises(DatasetError, match=rf"{index}\.png"):
            dataset[index]


@pytest.mark.parametrize("content", [b"P1\n13\x7f9 4\n", b"qoif\0\0\0\4\0\0\0\4\3\0", b""])
def test_whatever_pillow_raises_is_a_file_that_cannot_be_read(records, caplog, content):
    """Of the first two it raises ValueErrors."""
    Path(records[2]["file_name"]).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert TrainingDataset(records, image_id)[Draw(2, 1)][0] == 4
    assert "2.png: it is" in caplog.messages[0]
    with pytest.raises(DatasetError, match=r"2\.png: it is .*; evaluation needs every image"):
        EvaluationDataset(records, image_id)[2]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_waited_for(records, caplog, make):
    os.unlink(records[2]["file_name"])
    make(records[2]["file_name"])
    with caplog.at_level(logging.WARNING):
        assert TrainingDataset(records, image_id)[Draw(2, 1)][0] == 4
    assert "2.png: it is not a file, but a folder, a pipe or a device" in caplog.messages[0]
    with pytest.raises(DatasetError, match=r"2\.png: it is not a file"):
        EvaluationDataset(records, image_id)[2]


def test_a_draw_gives_the_same_sample_anywhere_and_leaves_the_generators(records):
    dataset = TrainingDataset(records, image_id)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(2), np.random.rand(2), [random.random() for _ in range(2)]
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    parts = [(torch.rand(1), np.random.rand(1), random.random())]
    draws = [Draw(0, 2**62 + 11), Draw(4, 12), Draw(0, 2**62 + 11), Draw(0, 11)]
    here = [dataset[draw] for draw in draws]
    parts += [(torch.rand(1), np.random.rand(1), random.random())]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), expected[0])
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), expected[1])
    assert [part[2] for part in parts] == expected[2]

    assert here[0] == here[2] != here[3]
    loader = DataLoader(
        dataset, batch_sampler=[draws[:1], draws[1:]], num_workers=2, collate_fn=list
    )
    assert [sample for batch in loader for sample in batch] == here


def test_programming_errors_are_not_taken_for_bad_images(records):
    def broken(record):
        raise KeyError("bbox")

    with pytest.raises(KeyError):
        TrainingDataset(records, broken)[Draw(0, 1)]


def test_packed_records_are_the_records():
    records = [{"image_id": i, "annotations": [{"bbox": [i, 0.5]}] * i} for i in range(4)]
    for packed in (PackedRecords(records), pickle.loads(pickle.dumps(PackedRecords(records)))):
        assert list(packed) == records
        assert packed[-1] == records[-1]
    with pytest.raises(IndexError):
        packed[4]
    assert len(PackedRecords([])) == 0


def saved(tmp_path, image, **arguments):
    image.save(tmp_path / "image.png", **arguments)
    return np.asarray(read_rgb(str(tmp_path / "image.png")))


def test_every_kind_of_image_becomes_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    np.testing.assert_array_equal(saved(tmp_path, image), rgb)
    alpha = image.copy()
    alpha.putalpha(100)
    np.testing.assert_array_equal(saved(tmp_path, alpha), rgb)
    palette = image.quantize(200)
    np.testing.assert_array_equal(saved(tmp_path, palette), np.asarray(palette.convert("RGB")))
    grey = rgb[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(grey)), expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 77)
    np.testing.assert_array_equal(saved(tmp_path, deep), expected)


@pytest.mark.parametrize(
    ("values", "type", "shown"),
    [
        ([0, 1.5, 254.75, 255], np.float32, [0, 1, 254, 255]),
        ([0, 0], np.float32, [0, 0]),
        ([0, 300, 65535], np.int32, [0, 1, 255]),
        ([0, 0], np.uint16, [0, 0]),
        ([0, 0.25, 1], np.float32, None),
        ([0, 0.001], np.float32, None),
        ([9, np.nan], np.float32, None),
        ([9, np.inf], np.float32, None),
        ([9, -0.5], np.float32, None),
        ([9, 255.5], np.float32, None),
        ([9, 65536], np.int32, None),
        ([300, -1], np.int32, None),
        ([0, 255], np.int32, None),
        ([0, 255], np.uint16, None),
    ],
)
def test_grey_values_are_as_bright_as_they_say_or_refused(tmp_path, values, type, shown):
    """Pillow makes those beyond 0..255 white or black."""
    path = str(tmp_path / "grey.tif")
    Image.fromarray(np.array([values], dtype=type)).save(path)
    if shown is None:
        words = r"its values run from \S+ to \S+, which does not tell what is white; save it with"
        with pytest.raises(OSError, match=words):
            read_rgb(path)
        assert "white; save it" in probe_image(path, verify=True).fault
    else:
        np.testing.assert_array_equal(np.asarray(read_rgb(path))[0, :, 0], shown)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_turned_tiff_is_upright_once(tmp_path, compression):
    """Pillow turns it itself, and of a path that it maps into memory it mixes up the rows."""
    grey = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = str(tmp_path / "turned.tif")
    Image.fromarray(grey).save(path, exif=exif, compression=compression)
    np.testing.assert_array_equal(np.asarray(read_rgb(path))[..., 0], np.rot90(grey, -1))
    assert probe_image(path, verify=False).size == probe_image(path, verify=True).size == (4, 6)


def test_exif_orientation_is_applied_and_rubbish_in_it_ignored(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    turned = saved(tmp_path, Image.fromarray(rgb), exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(rgb, -1))
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, "JPEG", exif=b"Exif\0\0rubbish")
    (tmp_path / "image.jpg").write_bytes(content.getvalue())
    assert read_rgb(str(tmp_path / "image.jpg")).size == (6, 4)
