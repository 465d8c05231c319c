"""Boxes at the edges of what can be, through the mappers of both hosts."""

import logging
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odd_boxes import HOSTS, SIZES, Folder, annotated, mapper_of
from PIL import Image
from torch.testing import assert_close

from smca.data.coco import drop_bad_boxes
from smca.data.dataset import seeded

LEAST = 1e-3  # pixels of a box that are in the image, to learn from


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("images"))


def learnt(size, annotations):
    """Labels and corners, in float64, of what is to be learned: a short reference."""
    height, width = size
    labels, corners = [], []
    for entry in annotations:
        x, y, w, h = map(float, entry["bbox"])
        if entry["iscrowd"] or not (w > 0 and h > 0) or not np.isfinite([x, y, w, h]).all():
            continue
        box = np.clip([x, y, x + w, y + h], 0, [width, height, width, height])
        if min(box[2] - box[0], box[3] - box[1]) > LEAST:
            labels.append(entry["category_id"])
            corners.append(box)
    return np.array(labels, dtype=np.int64), np.array(corners).reshape(-1, 4)


@pytest.mark.slow
@settings(max_examples=1000)
@given(annotated(), st.sampled_from([0, 1, 7, 64]), st.sampled_from([64, 90]))
@example(((1, 4000), []), 800, 1333)  # a height of 0.33 pixels
@example(((1, 1), []), 800, 1333)
@example(((50, 4000), []), 800, 1333)
def test_boxes_are_clipped_scaled_and_never_lost(folder, case, short, longest):
    size, annotations = case
    wanted_labels, corners = learnt(size, annotations)
    (record,) = drop_bad_boxes([folder.record(size, annotations)], "drawn")
    images = []
    for host in HOSTS:
        mapper = mapper_of(host, MIN_SIZE_TRAIN=(short,), MAX_SIZE_TRAIN=longest)
        image, labels, boxes = mapper(record)
        images.append(image)
        h, w = image.shape[1:]
        if short == 0:
            assert (h, w) == size
        else:
            scale = min(short / min(size), longest / max(size))
            assert h == pytest.approx(max(1, scale * size[0]), abs=0.51)
            assert w == pytest.approx(max(1, scale * size[1]), abs=0.51)
        assert labels.dtype == torch.int64 and boxes.dtype == torch.float32
        np.testing.assert_array_equal(labels.numpy(), wanted_labels)
        scales = np.array([w / size[1], h / size[0]] * 2)
        np.testing.assert_allclose(boxes.numpy(), corners * scales, rtol=1e-5, atol=1e-4)
        assert (boxes >= 0).all() and (boxes <= torch.tensor([w, h, w, h])).all()
    for image in images:
        assert_close(image, images[0], rtol=0, atol=0)


@settings(max_examples=200)
@given(annotated())
def test_what_is_dropped_is_counted(caplog_of, case):
    (height, width), annotations = case
    record = {"height": height, "width": width, "annotations": annotations}
    with caplog_of() as messages:
        (kept,) = drop_bad_boxes([record], "drawn")
    lost = len(annotations) - len(kept["annotations"])
    assert len(messages) == bool(lost)
    if lost:
        (message,) = messages
        assert f"drawn: dropped {lost} unusable boxes: " in message


@pytest.fixture(scope="module")
def caplog_of():
    """A context whose value is what the package logs of data in it."""

    @contextmanager
    def caught():
        messages = []
        handler = logging.Handler()
        handler.emit = lambda entry: messages.append(entry.getMessage())
        logger = logging.getLogger("smca.data.coco")
        logger.addHandler(handler)
        try:
            yield messages
        finally:
            logger.removeHandler(handler)

    return caught


@pytest.mark.parametrize("bbox", [[5, 5, 1e-6, 9], [-8, 5, 8.000001, 9], [39.9999999, 0, 40, 40]])
def test_a_box_too_small_to_learn_from_is_counted_too(folder, caplog_of, bbox):
    entry = {"bbox": bbox, "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
    record = folder.record((40, 40), [entry])
    with caplog_of() as messages:
        (record,) = drop_bad_boxes([record], "drawn")
    assert record["annotations"] == []
    assert len(messages) == 1 and "1 of less than a thousandth of a pixel" in messages[0]


@settings(max_examples=200)
@given(annotated(), st.randoms(use_true_random=False))
def test_permuted_annotations_give_permuted_targets(folder, case, random):
    size, annotations = case
    (record,) = drop_bad_boxes([folder.record(size, annotations)], "drawn")
    kept = [entry for entry in record["annotations"] if not entry["iscrowd"]]
    order = random.sample(range(len(kept)), len(kept))
    for host in HOSTS:
        mapper = mapper_of(host)
        _, labels, boxes = mapper({**record, "annotations": kept})
        if len(labels) == len(kept):
            _, others, moved = mapper({**record, "annotations": [kept[place] for place in order]})
            assert_close(others, labels[order])
            assert_close(moved, boxes[order], rtol=0, atol=0)


@pytest.fixture(scope="module")
def flipping_seeds():
    """By host and direction: the mapper, and a seed whose coin says flip."""
    return {}


def flipped(flipping_seeds, host, direction, folder, record):
    mapper = mapper_of(host, RANDOM_FLIP=direction)
    key = host, direction
    if key not in flipping_seeds:
        noise = folder.record((9, 9))
        plain = mapper_of(host)(noise)[0]
        for seed in range(30):
            with seeded(seed):
                if not torch.equal(mapper(noise)[0], plain):
                    flipping_seeds[key] = seed
                    break
    with seeded(flipping_seeds[key]):
        return mapper(record)


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
@settings(max_examples=150)
@given(case=annotated(sizes=st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_flipped_twice_is_the_original(flipping_seeds, folder, direction, case):
    size, annotations = case
    height, width = size
    (record,) = drop_bad_boxes([folder.record(size, annotations)], "drawn")
    path = str(folder.path / "flipped.bmp")
    for host in HOSTS:
        image, labels, boxes = mapper_of(host)(record)
        mirrored, same_labels, moved = flipped(flipping_seeds, host, direction, folder, record)
        axis, low, high, side = (2, 0, 2, width) if direction == "horizontal" else (1, 1, 3, height)
        assert_close(mirrored, image.flip(axis), rtol=0, atol=0)
        assert_close(same_labels, labels)
        expected = boxes.clone()
        expected[:, low], expected[:, high] = side - boxes[:, high], side - boxes[:, low]
        assert_close(moved, expected, rtol=0, atol=1e-4)

        Image.fromarray(mirrored.permute(1, 2, 0).contiguous().numpy()).save(path)
        again = [
            {
                "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                "bbox_mode": 1,
                "category_id": label,
                "iscrowd": 0,
            }
            for box, label in zip(moved.tolist(), labels.tolist(), strict=True)
        ]
        twice = flipped(
            flipping_seeds,
            host,
            direction,
            folder,
            {**record, "file_name": path} | {"annotations": again},
        )
        assert_close(twice[0], image, rtol=0, atol=0)
        assert_close(twice[2], boxes, rtol=0, atol=1e-4)


@settings(max_examples=200)
@given(st.data(), st.integers(0, 2**32))
def test_boxes_stay_on_their_pixels(folder, data, seed):
    """Through flips, crops and sizes a box is where the white rectangle is."""
    height, width = data.draw(st.tuples(st.integers(24, 90), st.integers(24, 90)))
    x, y = (data.draw(st.integers(0, side - 12)) for side in (width, height))
    w, h = data.draw(st.integers(12, width - x)), data.draw(st.integers(12, height - y))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y : y + h, x : x + w] = 255
    record = folder.record((height, width))
    path = folder.path / "rectangle.bmp"
    Image.fromarray(pixels).save(path)
    entry = {"bbox": [x, y, w, h], "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
    record |= {"file_name": str(path), "annotations": [entry]}
    for host in HOSTS:
        mapper = mapper_of(
            host,
            **{"RANDOM_FLIP": "horizontal", "MIN_SIZE_TRAIN": (40, 70), "MAX_SIZE_TRAIN": 100},
            **{"CROP.ENABLED": True, "CROP.TYPE": "absolute_range", "CROP.SIZE": (20, 40)},
            **{"CROP.MIN_SIZE_BEFORE": (30, 50)},
        )
        with seeded(seed):
            image, _, boxes = mapper(record)
        rows, columns = (image[0] > 127).nonzero().unbind(1)
        if len(boxes) == 0 or len(rows) == 0:
            # All but a sliver is outside the crop.
            assert len(rows) == 0 or min(len(rows.unique()), len(columns.unique())) <= 5
            continue
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # Two resizings, each by half a pixel that is enlarged up to 4 times.
        assert_close(boxes[0], torch.tensor(seen).float(), rtol=0, atol=4)


@settings(max_examples=120)
@given(SIZES, st.integers(0, 2**32))
def test_crops_of_strips_have_pixels(folder, size, seed):
    for host in HOSTS:
        mapper = mapper_of(
            host,
            **{"MIN_SIZE_TRAIN": (20, 30), "MAX_SIZE_TRAIN": 60, "RANDOM_FLIP": "vertical"},
            **{"CROP.ENABLED": True, "CROP.TYPE": "absolute_range", "CROP.SIZE": (12, 24)},
            **{"CROP.MIN_SIZE_BEFORE": (15, 25)},
        )
        with seeded(seed):
            image, _, boxes = mapper(folder.record(size))
        assert min(image.shape[1:]) >= 1 and max(image.shape[1:]) <= 60
        assert boxes.shape == (0, 4)


@pytest.mark.parametrize("host", HOSTS)
def test_a_strip_takes_no_memory_before_its_crop(folder, host):
    """1 x 4000 pixels with a short side of 600 would be 600 x 2,400,000."""
    mapper = mapper_of(
        host,
        **{"MIN_SIZE_TRAIN": (480,), "MAX_SIZE_TRAIN": 1333},
        **{"CROP.ENABLED": True, "CROP.TYPE": "absolute_range", "CROP.SIZE": (384, 600)},
        **{"CROP.MIN_SIZE_BEFORE": (600,)},
    )
    before, shapes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, set()
    for seed in range(8):
        with seeded(seed):
            shapes.add(tuple(mapper(folder.record((1, 4000)))[0].shape))
    assert len(shapes) > 1, "no seed had a crop"
    # In KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10
