"""Images and boxes as the mapper gives them."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402

from smca.d2 import DetrDatasetMapper, add_smca_config  # noqa: E402
from smca.data.dataset import seeded  # noqa: E402

WIDTH, HEIGHT = 120, 90


@pytest.fixture
def record(tmp_path):
    """A photo whose pixels tell their place, and a box from (30, 20) to (70, 50)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([2 * columns, 2 * rows, 0 * rows], axis=-1).astype(np.uint8)
    pixels[20:50, 30:70, 2] = 255
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    box = {"bbox": [30, 20, 40, 30], "bbox_mode": 1, "category_id": 2, "iscrowd": 0}
    return {
        "file_name": str(path),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [box, {**box, "iscrowd": 1}],
    }


def mapper(*opts, is_train=True):
    cfg = get_cfg()
    add_smca_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.merge_from_list([*("INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.MIN_SIZE_TEST", 0), *opts])
    return DetrDatasetMapper(cfg, is_train)


def seen_box(image):
    """Where the blue rectangle is."""
    rows, columns = (image[2] > 127).nonzero().unbind(1)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_without_augmentation(record):
    sample = mapper("INPUT.RANDOM_FLIP", "none")(record)
    assert sample["image"].shape == (3, HEIGHT, WIDTH)
    assert sample["image"].dtype == torch.uint8
    assert sample["instances"].gt_boxes.tensor.tolist() == [[30, 20, 70, 50]]
    assert sample["instances"].gt_classes.tolist() == [2]
    assert len(record["annotations"]) == 2
    blue_first = mapper("INPUT.RANDOM_FLIP", "none", "INPUT.FORMAT", "BGR")(record)
    torch.testing.assert_close(blue_first["image"], sample["image"].flip(0))


def test_evaluation_resizes_and_keeps_the_original_size(record):
    sample = mapper("INPUT.MIN_SIZE_TEST", 45, is_train=False)(record)
    assert sample["image"].shape == (3, 45, 60)
    assert (sample["height"], sample["width"], sample["image_id"]) == (HEIGHT, WIDTH, 7)
    assert "instances" not in sample


@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
def test_boxes_follow_flips_crops_and_sizes(record, flip):
    train = mapper(
        *("INPUT.RANDOM_FLIP", flip, "INPUT.MIN_SIZE_TRAIN", (100, 150, 200)),
        *("INPUT.MAX_SIZE_TRAIN", 210, "INPUT.CROP.ENABLED", True),
        *("INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", (60, 100)),
        *("INPUT.CROP.MIN_SIZE_BEFORE", (90, 110)),
    )
    shapes, boxes, flipped = set(), set(), 0
    for seed in range(60):
        with seeded(seed):
            sample = train(record)
        image, instances = sample["image"], sample["instances"]
        h, w = image.shape[1:]
        assert max(h, w) <= 210
        shapes.add((h, w))
        axis = image[0, h // 2] if flip == "horizontal" else image[1, :, w // 2]
        flipped += bool(axis[0] > axis[-1])
        if len(instances):
            (box,) = instances.gt_boxes.tensor
            boxes.add(tuple(box.tolist()))
            assert box.min() >= 0 and box[2] <= w and box[3] <= h
            torch.testing.assert_close(box, torch.tensor(seen_box(image)).float(), rtol=0, atol=3.5)
    assert 15 < flipped < 45
    # With even odds the whole image at one of three sizes, or a crop of any shape.
    whole = [shape for shape in shapes if shape in {(100, 133), (150, 200), (158, 210)}]
    assert len(whole) == 3
    assert len(shapes) > 20
    assert len(boxes) > 20


def test_a_turned_photo_is_upright(record):
    image = Image.open(record["file_name"])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(record["file_name"], exif=exif)
    sample = mapper("INPUT.RANDOM_FLIP", "none")(record)
    assert seen_box(sample["image"]) == [30, 20, 70, 50]


def test_another_size_than_annotated_counts_as_unreadable(record):
    record["width"] += 1
    with pytest.raises(OSError, match=r"image\.png is 120x90 .* says 121x90"):
        mapper()(record)
